//! Finds and aborts multipart uploads that were never completed. S3 and GCS answer alike.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Request, Uri};
use object_store::{
    client::{HttpClient, HttpRequest, HttpRequestBody},
    multipart::MultipartStore,
    path::Path,
};
use serde::Deserialize;

use super::{
    Sweep,
    ask::{ask, fault},
};

/// Signs a request that the library does not know.
#[async_trait]
pub(crate) trait Authorize: std::fmt::Debug + Send + Sync + 'static {
    async fn authorize(&self, request: &mut HttpRequest) -> object_store::Result<()>;
}

/// Lists the uploads of one key, and aborts them.
pub(crate) struct XmlSweep {
    pub(crate) uploads: Arc<dyn MultipartStore>,
    pub(crate) client: HttpClient,
    pub(crate) bucket_url: String,
    pub(crate) authorize: Box<dyn Authorize>,
}

impl std::fmt::Debug for XmlSweep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "XmlSweep({})", self.bucket_url)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Listed {
    upload: Vec<Upload>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
}

impl XmlSweep {
    async fn list(&self, key: &Path) -> object_store::Result<Vec<String>> {
        let query: String = key
            .as_ref()
            .bytes()
            .map(|byte| match byte {
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect();
        let uri: Uri = format!("{}?prefix={query}&uploads=", self.bucket_url)
            .parse()
            .map_err(fault)?;
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(uri)
            .body(HttpRequestBody::empty())
            .map_err(fault)?;
        self.authorize.authorize(&mut request).await?;
        let body = ask(&self.client, &request).await?.success()?;
        let listed: Listed = quick_xml::de::from_str(&String::from_utf8_lossy(&body)).map_err(fault)?;
        // The prefix is a whole key, but a server may take it for what it is.
        let ours = listed.upload.into_iter().filter(|upload| upload.key == key.as_ref());
        Ok(ours.map(|upload| upload.upload_id).collect())
    }
}

#[async_trait]
impl Sweep for XmlSweep {
    async fn sweep(&self, key: &Path) -> object_store::Result<()> {
        for upload in self.list(key).await? {
            match self.uploads.abort_multipart(key, &upload).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_may_hold_none_one_or_many() {
        for (inner, expected) in [
            ("", 0),
            (
                "<Upload><Key>a</Key><UploadId>1</UploadId><Initiated>x</Initiated></Upload>",
                1,
            ),
            (
                "<Upload><Key>a</Key><UploadId>1</UploadId></Upload><IsTruncated>false</IsTruncated>\
                 <Upload><Key>b</Key><UploadId>2</UploadId></Upload>",
                2,
            ),
        ] {
            let xml = format!(
                "<?xml version=\"1.0\"?><ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <Bucket>b</Bucket>{inner}</ListMultipartUploadsResult>"
            );
            let listed: Listed = quick_xml::de::from_str(&xml).unwrap();
            assert_eq!(listed.upload.len(), expected, "{xml}");
        }
    }
}
