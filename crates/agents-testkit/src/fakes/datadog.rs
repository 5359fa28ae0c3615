//! A fake of Datadog's logs intake and search.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flate2::read::{GzDecoder, ZlibDecoder};
use futures_util::FutureExt;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, header::HeaderValue};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    datadog_query::Query,
    server::{Handler, Server, respond},
};

/// The documented limits of a request to the intake, and which megabyte it means is not documented: the smaller one.
const PAYLOAD: usize = 5_000_000;
const LOG: usize = 1_000_000;
const LOGS: usize = 1000;
/// How far the official time of a log may be away.
const PAST: Duration = Duration::from_secs(18 * 3600);
const FUTURE: Duration = Duration::from_secs(2 * 3600);

/// Default attributes for the official time.
const DATES: [&str; 6] = [
    "timestamp",
    "date",
    "_timestamp",
    "Timestamp",
    "eventTime",
    "published_date",
];
const TAGS: usize = 100;

/// Datadog's `POST /api/v2/logs`, `POST /api/v2/logs/events/search` and `GET /api/v1/validate`, in memory, after the public
/// documentation of the API.
///
/// It enforces what is documented: both keys; 5 MB a request (413), 1,000 logs a request (413), 1 MB a log (cut, so that its
/// attributes are lost), 18 hours in the past and 2 in the future (accepted with 202, and dropped), gzip and deflate; a
/// search's default of the last 15 minutes, pages of 10 and at most 1,000, cursors, `X-RateLimit-*`. Like the real one it
/// drops attributes that are null, rounds large numbers, writes tags small, and keeps no order within a millisecond. Unlike the
/// real one it finds a log at once.
#[derive(Debug)]
pub struct FakeDatadog {
    server: Server,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    api_key: String,
    app_key: String,
    logs: Vec<Log>,
    searches: Option<Limit>,
}

#[derive(Debug)]
struct Limit {
    count: u32,
    period: Duration,
    used: u32,
    start: Instant,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) sequence: u64,
    pub(super) millisecond: i64,
    pub(super) attributes: Map<String, Value>,
    pub(super) message: String,
    pub(super) status: String,
    pub(super) source: String,
    pub(super) service: String,
    pub(super) host: String,
    pub(super) tags: Vec<String>,
}

impl FakeDatadog {
    /// Starts a fake that knows these keys. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When loopback cannot be listened on.
    pub async fn start(api_key: &str, app_key: &str) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            api_key: api_key.to_owned(),
            app_key: app_key.to_owned(),
            logs: Vec::new(),
            searches: None,
        }));
        let shared = Arc::clone(&state);
        let handler: Handler = Arc::new(move |request| {
            let response = lock(&shared).handle(&request);
            std::future::ready(response).boxed()
        });
        let server = Server::start(handler).await?;
        Ok(Self { server, state })
    }

    /// Where it is: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// How many logs are kept, each as often as it was sent.
    pub fn count(&self) -> usize {
        lock(&self.state).logs.len()
    }

    /// Lets only so many searches pass in a period.
    pub fn limit_searches(&self, count: u32, period: Duration) {
        lock(&self.state).searches = Some(Limit {
            count,
            period,
            used: 0,
            start: Instant::now(),
        });
    }

    /// Changes the keys, as when they are revoked.
    pub fn set_keys(&self, api_key: &str, app_key: &str) {
        let mut state = lock(&self.state);
        state.api_key = api_key.to_owned();
        state.app_key = app_key.to_owned();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a request is refused.
type Refusal = (StatusCode, String);

fn refusal(status: StatusCode, why: &str) -> Refusal {
    (status, why.to_owned())
}

fn refuse(status: StatusCode, why: &str) -> Response<Bytes> {
    respond(status, json!({ "errors": [why] }).to_string())
}

impl State {
    fn handle(&mut self, request: &Request<Bytes>) -> Response<Bytes> {
        let headers = request.headers();
        match headers.get("dd-api-key") {
            None => return refuse(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Some(key) if key != self.api_key.as_str() => return refuse(StatusCode::FORBIDDEN, "Forbidden"),
            Some(_) => {}
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/api/v1/validate") => respond(StatusCode::OK, r#"{"valid":true}"#),
            (&Method::POST, "/api/v2/logs") => match self.submit(headers, request.body()) {
                Ok(()) => respond(StatusCode::ACCEPTED, "{}"),
                Err((status, why)) => refuse(status, &why),
            },
            (&Method::POST, "/api/v2/logs/events/search") => {
                match headers.get("dd-application-key") {
                    None => return refuse(StatusCode::UNAUTHORIZED, "Unauthorized"),
                    Some(key) if key != self.app_key.as_str() => return refuse(StatusCode::FORBIDDEN, "Forbidden"),
                    Some(_) => {}
                }
                let (allowed, limits) = self.count_search();
                let mut response = match allowed {
                    true => match self.search(request.body()) {
                        Ok(response) => response,
                        Err((status, why)) => refuse(status, &why),
                    },
                    false => refuse(StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
                };
                response.headers_mut().extend(limits);
                response
            }
            _ => refuse(StatusCode::NOT_FOUND, "Not found"),
        }
    }

    fn submit(&mut self, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
        let encoding = headers
            .get("content-encoding")
            .map_or("identity", |value| value.to_str().unwrap_or_default());
        // One byte more than is allowed tells.
        let mut payload = Vec::new();
        let limit = PAYLOAD as u64 + 1;
        let read = match encoding {
            "identity" => body.take(limit).read_to_end(&mut payload),
            "gzip" => GzDecoder::new(body).take(limit).read_to_end(&mut payload),
            "deflate" => ZlibDecoder::new(body).take(limit).read_to_end(&mut payload),
            _ => return Err(refusal(StatusCode::BAD_REQUEST, "Invalid Content-Encoding")),
        };
        if read.is_err() {
            return Err(refusal(StatusCode::BAD_REQUEST, "Invalid compression"));
        }
        if payload.len() > PAYLOAD {
            return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large"));
        }
        let logs = match serde_json::from_slice(&payload) {
            Ok(Value::Array(logs)) => logs,
            Ok(log @ Value::Object(_)) => vec![log],
            _ => return Err(refusal(StatusCode::BAD_REQUEST, "Invalid JSON")),
        };
        if logs.len() > LOGS {
            return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "Too many logs"));
        }
        for log in logs {
            let Value::Object(log) = log else {
                return Err(refusal(StatusCode::BAD_REQUEST, "A log must be an object"));
            };
            self.keep(log);
        }
        Ok(())
    }

    fn keep(&mut self, mut log: Map<String, Value>) {
        if json!(log).to_string().len() > LOG {
            // What is cut is no JSON any more, so only the text is left.
            let mut text = json!(log).to_string();
            text.truncate(
                (0..=LOG)
                    .rev()
                    .find(|end| text.is_char_boundary(*end))
                    .unwrap_or_default(),
            );
            log = Map::from_iter([("message".to_owned(), text.into())]);
        }
        let now = Timestamp::now();
        let official = DATES.iter().find_map(|name| match log.remove(*name)? {
            Value::Number(number) => Timestamp::from_millisecond(number.as_i64()?).ok(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        });
        let official = official.unwrap_or(now);
        if official < now - PAST || official > now + FUTURE {
            return;
        }
        let mut take = |name: &str| match log.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (source, service, host) = (take("ddsource"), take("service"), take("hostname"));
        let (message, status, tags) = (take("message"), take("status"), take("ddtags"));
        let tags = tags
            .split(',')
            .map(|tag| tag.trim().to_lowercase())
            .filter(|tag| !tag.is_empty());
        self.logs.push(Log {
            sequence: self.logs.len() as u64,
            millisecond: official.as_millisecond(),
            message,
            status,
            source,
            service,
            host,
            tags: tags.take(TAGS).collect(),
            attributes: match as_kept(Value::Object(log)) {
                Some(Value::Object(attributes)) => attributes,
                _ => Map::new(),
            },
        });
    }

    /// Whether one more search may pass, and the headers that tell of it.
    fn count_search(&mut self) -> (bool, HeaderMap) {
        let mut headers = HeaderMap::new();
        let Some(limit) = &mut self.searches else {
            return (true, headers);
        };
        if limit.start.elapsed() >= limit.period {
            (limit.start, limit.used) = (Instant::now(), 0);
        }
        let allowed = limit.used < limit.count;
        limit.used += u32::from(allowed);
        let reset = limit.period.saturating_sub(limit.start.elapsed());
        for (name, value) in [
            ("x-ratelimit-limit", u64::from(limit.count)),
            ("x-ratelimit-period", limit.period.as_secs()),
            ("x-ratelimit-remaining", u64::from(limit.count - limit.used)),
            // Rounded up, or a client that waits as long as this comes too early.
            ("x-ratelimit-reset", reset.as_secs() + 1),
        ] {
            headers.insert(name, HeaderValue::from(value));
        }
        (allowed, headers)
    }

    fn search(&self, body: &[u8]) -> Result<Response<Bytes>, Refusal> {
        let invalid = |why: &str| refusal(StatusCode::BAD_REQUEST, why);
        let request: Value = serde_json::from_slice(body).map_err(|_| invalid("Invalid JSON"))?;
        let filter = &request["filter"];
        let query = Query::parse(filter["query"].as_str().unwrap_or("*")).map_err(|why| invalid(&why))?;
        let now = Timestamp::now().as_millisecond();
        let time = |name: &str, default: i64| match &filter[name] {
            Value::Null => Ok(default),
            Value::String(text) => match (text.parse(), text.parse::<Timestamp>()) {
                (Ok(millisecond), _) => Ok(millisecond),
                (_, Ok(time)) => Ok(time.as_millisecond()),
                _ => Err(invalid("Invalid time")),
            },
            _ => Err(invalid("Invalid time")),
        };
        let (from, to) = (time("from", now - 15 * 60_000)?, time("to", now)?);
        let limit = request["page"]["limit"].as_u64().unwrap_or(10);
        if !(1..=1000).contains(&limit) {
            return Err(invalid("Invalid limit"));
        }
        let ascending = match request["sort"].as_str() {
            Some("timestamp") => true,
            None | Some("-timestamp") => false,
            Some(_) => return Err(invalid("Invalid sort")),
        };
        // Within a millisecond the latest comes first: nobody may rely on the order of arrival.
        let key = |log: &Log| {
            (
                if ascending { log.millisecond } else { -log.millisecond },
                u64::MAX - log.sequence,
            )
        };
        let after = match request["page"]["cursor"].as_str() {
            None => None,
            Some(cursor) => Some(parse_cursor(cursor).ok_or_else(|| invalid("Invalid cursor"))?),
        };
        let mut found: Vec<_> = self
            .logs
            .iter()
            .filter(|log| (from..=to).contains(&log.millisecond) && query.matches(log))
            .collect();
        found.sort_by_key(|log| key(log));
        found.retain(|log| after.is_none_or(|after| key(log) > after));
        let more = found.len() > limit as usize;
        found.truncate(limit as usize);
        let mut answer = json!({
            "data": found.iter().map(|log| shown(log)).collect::<Vec<_>>(),
            "meta": {"elapsed": 1, "status": "done", "page": {}},
        });
        if let Some(last) = found.last().filter(|_| more) {
            let (millisecond, place) = key(last);
            answer["meta"]["page"]["after"] = format!("{millisecond:x}.{place:x}").into();
        }
        Ok(respond(StatusCode::OK, answer.to_string()))
    }
}

fn parse_cursor(text: &str) -> Option<(i64, u64)> {
    let (millisecond, place) = text.split_once('.')?;
    Some((
        i64::from_str_radix(millisecond, 16).ok()?,
        u64::from_str_radix(place, 16).ok()?,
    ))
}

/// What becomes of an attribute: null is dropped, and a number that is too large for a double is rounded.
fn as_kept(value: Value) -> Option<Value> {
    Some(match value {
        Value::Null => return None,
        Value::Number(number) if number.as_i64().is_some_and(|number| number.unsigned_abs() > 1 << 53) => {
            json!(number.as_f64())
        }
        Value::Array(values) => values.into_iter().filter_map(as_kept).collect(),
        Value::Object(values) => {
            let kept = values
                .into_iter()
                .filter_map(|(name, value)| Some((name, as_kept(value)?)));
            Value::Object(kept.collect())
        }
        value => value,
    })
}

fn shown(log: &Log) -> Value {
    json!({
        "id": format!("{:016x}", log.sequence),
        "type": "log",
        "attributes": {
            "attributes": log.attributes,
            "host": log.host,
            "message": log.message,
            "service": log.service,
            "status": log.status,
            "tags": log.tags,
            "timestamp": Timestamp::from_millisecond(log.millisecond).unwrap_or_default().to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            api_key: "k".to_owned(),
            app_key: "a".to_owned(),
            logs: Vec::new(),
            searches: None,
        }
    }

    fn post(state: &mut State, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let mut request = Request::builder().method(Method::POST).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = state.handle(&request.body(Bytes::from(body.to_owned())).unwrap());
        let body = serde_json::from_slice(response.body()).unwrap();
        (response.status().as_u16(), body)
    }

    #[test]
    fn the_limits_of_the_intake_are_enforced() {
        let mut state = state();
        let key = [("dd-api-key", "k")];
        let mut submit = |headers: &[(&str, &str)], body: &str| post(&mut state, "/api/v2/logs", headers, body).0;
        assert_eq!(submit(&[], "[]"), 401);
        assert_eq!(submit(&[("dd-api-key", "x")], "[]"), 403);
        assert_eq!(submit(&key, "no JSON"), 400);
        assert_eq!(submit(&[key[0], ("content-encoding", "gzip")], "[]"), 400, "not gzip");
        assert_eq!(submit(&key, &format!("[{}{{}}]", "{},".repeat(1000))), 413);
        assert_eq!(submit(&key, &format!("[{}{{}}]", "{},".repeat(999))), 202);
        assert_eq!(
            submit(&key, &format!("{{\"message\":\"{}\"}}", "x".repeat(PAYLOAD))),
            413
        );
        let cut = format!("{{\"a\":1,\"message\":\"{}\"}}", "x".repeat(LOG));
        assert_eq!(submit(&key, &cut), 202);
        for timestamp in ["2020-01-01T00:00:00Z", "2120-01-01T00:00:00Z"] {
            assert_eq!(submit(&key, &format!("{{\"timestamp\":\"{timestamp}\"}}")), 202);
        }
        // The thousand, and the one that was cut and has lost its attribute.
        assert_eq!(state.logs.len(), 1001);
        assert!(state.logs[1000].attributes.is_empty() && state.logs[1000].message.len() == LOG);
    }

    #[test]
    fn searches_have_their_limits_and_defaults() {
        let mut state = state();
        let keys = [("dd-api-key", "k"), ("dd-application-key", "a")];
        let logs: Vec<_> = (0..12)
            .map(|n| json!({"n": n, "none": null, "big": u64::MAX >> 1}))
            .collect();
        post(&mut state, "/api/v2/logs", &keys, &json!(logs).to_string());
        let path = "/api/v2/logs/events/search";
        let mut search = |headers: &[(&str, &str)], body: Value| post(&mut state, path, headers, &body.to_string());
        assert_eq!(search(&keys[..1], json!({})).0, 401);
        for wrong in [
            json!({"page": {"limit": 1001}}),
            json!({"page": {"cursor": "x"}}),
            json!({"sort": "n"}),
        ] {
            assert_eq!(search(&keys, wrong).0, 400);
        }
        let (_, first) = search(&keys, json!({"sort": "timestamp"}));
        let cursor = first["meta"]["page"]["after"].clone();
        let (_, second) = search(&keys, json!({"sort": "timestamp", "page": {"cursor": cursor}}));
        assert_eq!(
            (
                first["data"].as_array().unwrap().len(),
                second["data"].as_array().unwrap().len()
            ),
            (10, 2)
        );
        assert_eq!(second["meta"]["page"], json!({}));
        let attributes = &first["data"][0]["attributes"]["attributes"];
        assert!(
            attributes.get("none").is_none() && attributes["big"].is_f64(),
            "{attributes}"
        );
        let early = json!({"filter": {"from": "0", "to": "1000"}});
        assert_eq!(search(&keys, early).1["data"], json!([]));
    }
}
