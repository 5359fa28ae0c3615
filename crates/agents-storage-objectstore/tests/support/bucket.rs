//! A look at what is in versitygw's bucket, past the storage.

use futures_util::TryStreamExt;
use http::{Method, Request};
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload,
    aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer},
    client::HttpRequestBody,
    path::Path,
};

use super::{
    proxy::forward,
    servers::{Server, variable},
};

pub struct Bucket {
    s3: AmazonS3,
    endpoint: String,
    name: String,
}

impl Bucket {
    pub fn new() -> Self {
        let (endpoint, name) = (
            Server::Versitygw.endpoint().unwrap(),
            variable("AGENTS_TEST_VERSITYGW_BUCKET"),
        );
        let _ = rustls::crypto::ring::default_provider().install_default();
        let s3 = AmazonS3Builder::new()
            .with_endpoint(&endpoint)
            .with_bucket_name(&name)
            .with_region("us-east-1")
            .with_access_key_id(variable("AGENTS_TEST_VERSITYGW_KEY"))
            .with_secret_access_key(variable("AGENTS_TEST_VERSITYGW_SECRET"))
            .with_allow_http(true)
            .build()
            .unwrap();
        Self { s3, endpoint, name }
    }

    /// The keys below a prefix, without it.
    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        let objects: Vec<_> = self.s3.list(Some(&Path::from(prefix))).try_collect().await.unwrap();
        let mut keys: Vec<_> = objects
            .iter()
            .map(|object| object.location.as_ref()[prefix.len() + 1..].to_owned())
            .collect();
        keys.sort();
        keys
    }

    /// The keys of multipart uploads that were begun and neither completed nor aborted.
    pub async fn unfinished(&self, prefix: &str) -> Vec<String> {
        let credential = self.s3.credentials().get_credential().await.unwrap();
        let prefix = prefix.replace('/', "%2F");
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(format!("{}/{}?prefix={prefix}&uploads=", self.endpoint, self.name))
            .body(HttpRequestBody::empty())
            .unwrap();
        AwsAuthorizer::new(&credential, "s3", "us-east-1")
            .try_authorize(&mut request, None)
            .unwrap();
        let (mut parts, _) = request.into_parts();
        let authority = self.endpoint.strip_prefix("http://").unwrap();
        parts.headers.insert("host", authority.parse().unwrap());
        let response = forward(authority, parts, bytes::Bytes::new()).await.unwrap();
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        assert!(response.status().is_success(), "{body}");
        assert!(body.contains("ListMultipartUploadsResult"), "{body}");
        body.split("<Key>")
            .skip(1)
            .map(|rest| rest.split("</Key>").next().unwrap().to_owned())
            .collect()
    }

    /// Writes an object past the storage.
    pub async fn put(&self, key: &str, content: &'static [u8]) {
        self.s3
            .put(&Path::parse(key).unwrap(), PutPayload::from_static(content))
            .await
            .unwrap();
    }

    /// Removes an object past the storage.
    pub async fn delete(&self, key: &str) {
        self.s3.delete(&Path::parse(key).unwrap()).await.unwrap();
    }
}
