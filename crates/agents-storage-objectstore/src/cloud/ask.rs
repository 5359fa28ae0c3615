//! Requests that the library does not know.

use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::{
    Result,
    client::{HttpClient, HttpRequest},
};

/// The most that is read of an answer: a list of a thousand uploads with long keys.
const ANSWER_MAX: usize = 4 << 20;

const TRIES: u32 = 4;

/// What a service answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body of a success. An error has the wording of the library, which `error::map` reads.
    pub(crate) fn success(self) -> Result<Vec<u8>> {
        match self.status {
            200..300 => Ok(self.body),
            status => Err(fault(format!(
                "Server returned non-2xx status code: {status}: {}",
                String::from_utf8_lossy(&self.body)
            ))),
        }
    }
}

/// Does a request that may be repeated, again while the service fails.
pub(crate) async fn ask(client: &HttpClient, request: &HttpRequest) -> Result<Answer> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let result = once(client, request.clone()).await;
        let again = match &result {
            Ok(answer) => answer.status >= 500 || answer.status == 429,
            Err(_) => true,
        };
        if !again || attempt == TRIES {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
    }
}

async fn once(client: &HttpClient, request: HttpRequest) -> Result<Answer> {
    let response = client.execute(request).await.map_err(fault)?;
    let status = response.status().as_u16();
    let mut pieces = response.into_body().bytes_stream();
    let mut body = Vec::new();
    while let Some(piece) = pieces.try_next().await.map_err(fault)? {
        if body.len() + piece.len() > ANSWER_MAX {
            return Err(fault("the answer is too long"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Answer { status, body })
}

pub(crate) fn fault(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic {
        store: "service",
        source: source.into(),
    }
}
