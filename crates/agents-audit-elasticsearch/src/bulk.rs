//! Bulk requests and their answers, which have a result for each event.

use std::ops::Range;

use agents_audit_remote::chunks;
use agents_core::{Error, Result};
use serde_json::{Value, json};

use crate::{document::Document, error::item_error};

/// The most events and bytes of a request.
const ROWS: usize = 1000;
const BYTES: usize = 5 << 20;

/// Splits documents into what fits into a request each.
pub(crate) fn requests(documents: &[Document]) -> Vec<Range<usize>> {
    chunks(documents, (ROWS, BYTES), |document| document.json.len() + 256)
}

/// A request for these documents. `create` never replaces one.
pub(crate) fn request<'d>(documents: impl Iterator<Item = &'d Document>) -> Vec<u8> {
    let mut body = Vec::new();
    for document in documents {
        let action = json!({"create": {"_index": document.index, "_id": document.id}});
        body.extend_from_slice(action.to_string().as_bytes());
        body.push(b'\n');
        body.extend_from_slice(document.json.as_bytes());
        body.push(b'\n');
    }
    body
}

/// What became of each document, in the order of the request; `None` for one that is stored.
///
/// # Errors
///
/// When the answer is none to this request.
pub(crate) fn results(answer: &Value, count: usize) -> Result<Vec<Option<Error>>> {
    let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.len() != count {
        let told = format!(
            "the search server answered for {} of {count} events; see whether endpoint names such a server",
            items.len()
        );
        return Err(Error::unexpected(told));
    }
    let result = |item: &Value| {
        let item = &item["create"];
        let status = item["status"].as_u64().and_then(|status| u16::try_from(status).ok());
        item_error(status.unwrap_or_default(), &item["error"])
    };
    Ok(items.iter().map(result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(bytes: usize) -> Document {
        Document {
            id: "i".to_owned(),
            index: "x".to_owned(),
            json: "j".repeat(bytes),
        }
    }

    #[test]
    fn requests_have_limits() {
        assert!(requests(&[]).is_empty());
        assert_eq!(requests(&vec![document(10); 2001]), [0..1000, 1000..2000, 2000..2001]);
        assert_eq!(requests(&vec![document(3 << 20); 3]), [0..1, 1..2, 2..3]);
        let body = request([document(1)].iter());
        assert_eq!(
            String::from_utf8(body).unwrap(),
            "{\"create\":{\"_id\":\"i\",\"_index\":\"x\"}}\nj\n"
        );
    }

    #[test]
    fn each_event_has_its_result() {
        let answer = json!({"errors": true, "items": [
            {"create": {"status": 201}},
            {"create": {"status": 409, "error": {"type": "version_conflict_engine_exception"}}},
            {"create": {"status": 429, "error": {"type": "es_rejected_execution_exception"}}},
            {"create": {"status": 400, "error": {"type": "mapper_parsing_exception"}}},
        ]});
        let results = results(&answer, 4).unwrap();
        assert!(results[0].is_none() && results[1].is_none());
        assert!(results[2].as_ref().unwrap().is_temporary());
        assert!(!results[3].as_ref().unwrap().is_temporary());
        for answer in [json!({"items": []}), json!({}), Value::Null] {
            assert!(super::results(&answer, 1).is_err());
        }
    }
}
