//! A fake of an OpenTelemetry collector's OTLP/HTTP receiver of logs.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures_util::FutureExt;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, header::HeaderValue};
use serde_json::{Map, Value, json};

use super::server::{Handler, Server, respond};

/// What a collector takes unless told otherwise.
const BODY: u64 = 20 << 20;

/// The receiver of a collector, `POST /v1/logs` with JSON, after the OTLP specification 1.9 and the JSON mapping of its
/// protocol buffers.
///
/// It reads strictly, where a real one skips what it does not know: a field that the protocol does not have is refused, and
/// so is a 64-bit integer that is no string, an identifier that is not hexadecimal of its length, a severity without a
/// number, and a body that is not compressed as its header says.
#[derive(Debug)]
pub struct FakeCollector {
    server: Server,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    authorization: Option<String>,
    records: Vec<Value>,
    resources: Vec<Value>,
    requests: usize,
    answers: VecDeque<Answer>,
    limit: Option<usize>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    retry_after: Option<String>,
    rejected: u64,
}

impl FakeCollector {
    /// Starts a fake. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When loopback cannot be listened on.
    pub async fn start() -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let handler: Handler = Arc::new(move |request| {
            let response = lock(&shared).handle(&request);
            std::future::ready(response).boxed()
        });
        let server = Server::start(handler).await?;
        Ok(Self { server, state })
    }

    /// The endpoint: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Takes only requests with this header `authorization`.
    pub fn require(&self, authorization: &str) {
        lock(&self.state).authorization = Some(authorization.to_owned());
    }

    /// Refuses requests with more records than this as too large.
    pub fn limit(&self, records: usize) {
        lock(&self.state).limit = Some(records);
    }

    /// Answers the next request with this status, and takes nothing of it.
    pub fn refuse_next(&self, status: u16, retry_after: Option<&str>) {
        lock(&self.state).answers.push_back(Answer {
            status,
            retry_after: retry_after.map(str::to_owned),
            rejected: 0,
        });
    }

    /// Takes the next request but for its first records, and says how many those are.
    pub fn reject_next(&self, records: u64) {
        lock(&self.state).answers.push_back(Answer {
            status: 200,
            retry_after: None,
            rejected: records,
        });
    }

    /// The log records that were taken, in their order, each as often as it was sent.
    pub fn records(&self) -> Vec<Value> {
        lock(&self.state).records.clone()
    }

    /// The resource of each request that was taken.
    pub fn resources(&self) -> Vec<Value> {
        lock(&self.state).resources.clone()
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        lock(&self.state).requests
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A `Status` of Google's, as the specification wants it in the body of an error.
fn status(code: StatusCode, message: &str) -> Response<Bytes> {
    respond(code, json!({"code": 3, "message": message}).to_string())
}

impl State {
    fn handle(&mut self, request: &Request<Bytes>) -> Response<Bytes> {
        self.requests += 1;
        if request.method() != Method::POST || request.uri().path() != "/v1/logs" || request.uri().query().is_some() {
            return status(StatusCode::NOT_FOUND, "404 page not found");
        }
        let authorization = request
            .headers()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        if self.authorization.is_some() && authorization != self.authorization.as_deref() {
            return status(StatusCode::UNAUTHORIZED, "missing or wrong authorization");
        }
        let answer = self.answers.pop_front();
        if let Some(answer) = answer.as_ref().filter(|answer| answer.status != 200) {
            let code = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = status(code, "as the test wants it");
            if let Some(wait) = answer
                .retry_after
                .as_deref()
                .and_then(|wait| HeaderValue::from_str(wait).ok())
            {
                response.headers_mut().insert("retry-after", wait);
            }
            return response;
        }
        let taken = body(request.headers(), request.body()).and_then(|body| export(&body));
        let (resources, records) = match taken {
            Ok(taken) => taken,
            Err(why) => return status(StatusCode::BAD_REQUEST, &why),
        };
        if self.limit.is_some_and(|limit| records.len() > limit) {
            return status(StatusCode::PAYLOAD_TOO_LARGE, "request body too large");
        }
        let rejected = answer.map_or(0, |answer| answer.rejected);
        self.resources.extend(resources);
        self.records.extend(
            records
                .into_iter()
                .skip(usize::try_from(rejected).unwrap_or(usize::MAX)),
        );
        let answer = match rejected {
            0 => json!({}),
            count => json!({"partialSuccess": {
                "rejectedLogRecords": count.to_string(), "errorMessage": "as the test wants it",
            }}),
        };
        respond(StatusCode::OK, answer.to_string())
    }
}

fn body(headers: &HeaderMap, body: &Bytes) -> Result<Vec<u8>, String> {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    if header("content-type") != "application/json" {
        return Err(format!(
            "content-type {:?} is not application/json",
            header("content-type")
        ));
    }
    let mut plain = Vec::new();
    match header("content-encoding") {
        "gzip" => {
            let read = GzDecoder::new(body.as_ref()).take(BODY + 1).read_to_end(&mut plain);
            read.map_err(|error| format!("not gzip: {error}"))?;
        }
        "" => plain.extend_from_slice(body),
        other => return Err(format!("content-encoding {other:?} is neither gzip nor none")),
    }
    if plain.len() as u64 > BODY {
        return Err("request body too large".to_owned());
    }
    Ok(plain)
}

type Fields<'a> = &'a Map<String, Value>;

/// The object, when it has no other fields than these.
fn fields<'a>(value: &'a Value, known: &[&str], of: &str) -> Result<Fields<'a>, String> {
    let object = value.as_object().ok_or_else(|| format!("{of} is no object"))?;
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("{of} has no field {key:?}")),
        None => Ok(object),
    }
}

fn each<'a>(object: Fields<'a>, key: &str) -> Result<&'a [Value], String> {
    match object.get(key) {
        None => Ok(&[]),
        Some(value) => value
            .as_array()
            .map(Vec::as_slice)
            .ok_or_else(|| format!("{key} is no array")),
    }
}

/// An `ExportLogsServiceRequest`: its resources, and its log records.
fn export(body: &[u8]) -> Result<(Vec<Value>, Vec<Value>), String> {
    let request: Value = serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}"))?;
    let request = fields(&request, &["resourceLogs"], "ExportLogsServiceRequest")?;
    let (mut resources, mut records) = (Vec::new(), Vec::new());
    for logs in each(request, "resourceLogs")? {
        let logs = fields(logs, &["resource", "scopeLogs", "schemaUrl"], "ResourceLogs")?;
        if let Some(resource) = logs.get("resource") {
            let known = fields(resource, &["attributes", "droppedAttributesCount"], "Resource")?;
            key_values(each(known, "attributes")?)?;
            resources.push(resource.clone());
        }
        for scoped in each(logs, "scopeLogs")? {
            let scoped = fields(scoped, &["scope", "logRecords", "schemaUrl"], "ScopeLogs")?;
            if let Some(scope) = scoped.get("scope") {
                fields(
                    scope,
                    &["name", "version", "attributes", "droppedAttributesCount"],
                    "InstrumentationScope",
                )?;
            }
            for record in each(scoped, "logRecords")? {
                log_record(record)?;
                records.push(record.clone());
            }
        }
    }
    Ok((resources, records))
}

fn log_record(record: &Value) -> Result<(), String> {
    const KNOWN: [&str; 11] = [
        "timeUnixNano",
        "observedTimeUnixNano",
        "severityNumber",
        "severityText",
        "body",
        "attributes",
        "droppedAttributesCount",
        "flags",
        "traceId",
        "spanId",
        "eventName",
    ];
    let record = fields(record, &KNOWN, "LogRecord")?;
    for key in ["timeUnixNano", "observedTimeUnixNano"] {
        let time = record.get(key).and_then(Value::as_str);
        if time.and_then(|time| time.parse::<u64>().ok()).is_none() {
            return Err(format!("{key} is no fixed64 in a string"));
        }
    }
    if !record
        .get("severityNumber")
        .and_then(Value::as_u64)
        .is_some_and(|number| (1..=24).contains(&number))
    {
        return Err("severityNumber is not from 1 to 24".to_owned());
    }
    for (key, digits) in [("traceId", 32), ("spanId", 16)] {
        let Some(id) = record.get(key) else { continue };
        let id = id.as_str().unwrap_or_default();
        if id.len() != digits || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("{key} has not {digits} hexadecimal digits"));
        }
    }
    if let Some(body) = record.get("body") {
        any_value(body)?;
    }
    key_values(each(record, "attributes")?)
}

/// Keys are unique, as the specification demands.
fn key_values(attributes: &[Value]) -> Result<(), String> {
    let mut keys = Vec::new();
    for attribute in attributes {
        let attribute = fields(attribute, &["key", "value"], "KeyValue")?;
        let key = attribute
            .get("key")
            .and_then(Value::as_str)
            .filter(|key| !key.is_empty());
        let key = key.ok_or("an attribute has no key")?;
        if keys.contains(&key) {
            return Err(format!("the attribute {key} comes twice"));
        }
        keys.push(key);
        any_value(attribute.get("value").ok_or("an attribute has no value")?)?;
    }
    Ok(())
}

fn any_value(value: &Value) -> Result<(), String> {
    let object = value.as_object().filter(|object| object.len() == 1);
    let Some((kind, value)) = object.and_then(|object| object.iter().next()) else {
        return Err("an AnyValue has not one field".to_owned());
    };
    let good = match kind.as_str() {
        "stringValue" => value.is_string(),
        "boolValue" => value.is_boolean(),
        "intValue" => value.as_str().is_some_and(|text| text.parse::<i64>().is_ok()),
        "doubleValue" => value.is_number(),
        "arrayValue" => {
            each(fields(value, &["values"], "ArrayValue")?, "values")?
                .iter()
                .try_for_each(any_value)?;
            true
        }
        "kvlistValue" => {
            key_values(each(fields(value, &["values"], "KeyValueList")?, "values")?)?;
            true
        }
        _ => false,
    };
    if good {
        Ok(())
    } else {
        Err(format!("{kind} with {value} is no AnyValue"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_strictly() {
        let record = json!({"timeUnixNano": "1", "observedTimeUnixNano": "1", "severityNumber": 9,
            "body": {"stringValue": "x"}, "attributes": [{"key": "a", "value": {"intValue": "1"}}]});
        assert_eq!(log_record(&record), Ok(()));
        for (key, value) in [
            ("timeUnixNano", json!(1)),
            ("severityNumber", json!("SEVERITY_NUMBER_INFO")),
            ("severityNumber", json!(25)),
            ("traceId", json!("AAAA")),
            ("spanId", json!("zzzzzzzzzzzzzzzz")),
            ("body", json!("text")),
            ("body", json!({"stringValue": "a", "intValue": "1"})),
            ("attributes", json!([{"key": "a", "value": {"intValue": 1}}])),
            (
                "attributes",
                json!([{"key": "a", "value": {"intValue": "1"}}, {"key": "a", "value": {"intValue": "1"}}]),
            ),
            ("attributes", json!({"a": "b"})),
            ("time_unix_nano", json!("1")),
        ] {
            let mut bad = record.clone();
            bad[key] = value.clone();
            assert!(log_record(&bad).is_err(), "{key} {value}");
        }
        assert!(export(br#"{"resourceLogs":[{"scopeLogs":[{"logs":[]}]}]}"#).is_err());
        assert_eq!(export(br#"{"resourceLogs":[]}"#), Ok((Vec::new(), Vec::new())));
    }
}
