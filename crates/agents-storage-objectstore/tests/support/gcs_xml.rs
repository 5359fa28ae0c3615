//! The part of Google's XML API that fake-gcs-server lacks, before it: objects are made by `PUT` with their metadata and
//! conditions in headers, and in parts by multipart uploads. What is stored, listed, read and deleted is the server's.
//!
//! After <https://cloud.google.com/storage/docs/xml-api/overview>. Parts are held to the service's rules: 5 MiB at least
//! but for the last, in order, and none of an upload that was aborted.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Parts};

use super::proxy::{Proxy, Serve, forward};

const PART_MIN: usize = 5 << 20;

#[derive(Default)]
struct Uploads {
    next: u64,
    open: BTreeMap<String, Upload>,
}

struct Upload {
    path: String,
    headers: HeaderMap,
    parts: BTreeMap<u32, (String, Bytes)>,
}

/// Starts it before the server at this address.
pub async fn start(target: &str) -> Proxy {
    Proxy::serving(before(target)).await
}

/// What stands before the server at this address.
pub fn before(target: &str) -> Serve {
    let authority = target.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    let uploads = Arc::new(Mutex::new(Uploads::default()));
    Arc::new(move |parts, body| {
        let (authority, uploads) = (authority.clone(), Arc::clone(&uploads));
        Box::pin(async move { serve(&authority, &uploads, parts, body).await })
    })
}

async fn serve(
    authority: &str,
    uploads: &Mutex<Uploads>,
    mut parts: Parts,
    body: Bytes,
) -> io::Result<Response<Bytes>> {
    // The server tells its ways apart by the name of the host.
    parts
        .headers
        .insert("host", authority.parse().map_err(io::Error::other)?);
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let get = |name: &str| {
        form_urlencoded::parse(query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    let is_bucket = path.trim_matches('/').split('/').count() == 1;
    if is_bucket && get("uploads").is_some() {
        return Ok(list(uploads, &path, &get("prefix").unwrap_or_default()));
    }
    if parts.method == Method::POST && get("uploads").is_some() {
        let mut uploads = uploads.lock().unwrap();
        uploads.next += 1;
        let id = format!("upload-{}", uploads.next);
        let upload = Upload {
            path,
            headers: parts.headers,
            parts: BTreeMap::new(),
        };
        uploads.open.insert(id.clone(), upload);
        return Ok(xml(
            200,
            &format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"),
        ));
    }
    let Some(id) = get("uploadId") else {
        return match parts.method {
            Method::PUT if query.is_empty() => make(authority, &path, &parts.headers, body).await,
            _ => forward(authority, parts, body).await,
        };
    };
    if parts.method == Method::POST {
        let Some(upload) = uploads.lock().unwrap().open.remove(&id) else {
            return Ok(error(404, "NoSuchUpload"));
        };
        let pieces: Vec<_> = upload.parts.into_values().collect();
        let named = String::from_utf8_lossy(&body).into_owned();
        let short = pieces.iter().rev().skip(1).any(|(_, part)| part.len() < PART_MIN);
        let all_named = pieces.iter().all(|(tag, _)| named.contains(tag));
        if short || !all_named || named.matches("<PartNumber>").count() != pieces.len() {
            return Ok(error(400, "InvalidPart"));
        }
        let whole: Vec<_> = pieces.into_iter().map(|(_, part)| part).collect();
        let made = make(authority, &upload.path, &upload.headers, whole.concat().into()).await?;
        return Ok(match made.status().is_success() {
            true => xml(
                200,
                "<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>",
            ),
            false => made,
        });
    }
    let mut uploads = uploads.lock().unwrap();
    if parts.method == Method::DELETE {
        return Ok(match uploads.open.remove(&id) {
            Some(_) => xml(204, ""),
            None => error(404, "NoSuchUpload"),
        });
    }
    let (Some(upload), Some(number)) = (uploads.open.get_mut(&id), get("partNumber")) else {
        return Ok(error(404, "NoSuchUpload"));
    };
    let tag = format!("{id}-part-{number}");
    upload.parts.insert(number.parse().unwrap(), (tag.clone(), body));
    let mut response = xml(200, "");
    response
        .headers_mut()
        .insert("etag", format!("\"{tag}\"").parse().unwrap());
    Ok(response)
}

/// Makes an object by the JSON API, which the server speaks. Of its two ways only this one heeds conditions.
async fn make(authority: &str, path: &str, headers: &HeaderMap, content: Bytes) -> io::Result<Response<Bytes>> {
    let (bucket, name) = path.trim_start_matches('/').split_once('/').unwrap();
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let mut uri = format!("/upload/storage/v1/b/{bucket}/o?uploadType=multipart");
    if let Some(generation) = text("x-goog-if-generation-match") {
        uri.push_str(&format!("&ifGenerationMatch={generation}"));
    }
    let metadata: BTreeMap<_, _> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().strip_prefix("x-goog-meta-")?, value.to_str().unwrap())))
        .collect();
    let content_type = text("content-type").unwrap_or_default();
    let resource = serde_json::json!({
        "name": decode(name),
        "contentType": content_type,
        "metadata": metadata,
        "storageClass": text("x-goog-storage-class"),
    });
    let boundary = uuid::Uuid::now_v7().simple().to_string();
    let mut body = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{resource}\r\n\
         --{boundary}\r\nContent-Type: {content_type}\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(&content);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let body = Bytes::from(body);
    let mut request = Request::post(uri)
        .header("host", authority)
        .header("content-length", body.len())
        .header("content-type", format!("multipart/related; boundary={boundary}"));
    if let Some(authorization) = headers.get("authorization") {
        request = request.header("authorization", authorization);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let made = forward(authority, parts, body).await?;
    if !made.status().is_success() {
        let code = match made.status() {
            StatusCode::PRECONDITION_FAILED => "PreconditionFailed",
            StatusCode::NOT_FOUND => "NoSuchBucket",
            _ => "InvalidArgument",
        };
        return Ok(error(made.status().as_u16(), code));
    }
    let said: serde_json::Value = serde_json::from_slice(made.body()).map_err(io::Error::other)?;
    let mut response = xml(200, "");
    for (header, field) in [("etag", "etag"), ("x-goog-generation", "generation")] {
        if let Some(value) = said[field].as_str() {
            response
                .headers_mut()
                .insert(header, value.parse().map_err(io::Error::other)?);
        }
    }
    Ok(response)
}

fn list(uploads: &Mutex<Uploads>, bucket: &str, prefix: &str) -> Response<Bytes> {
    let bucket = format!("{}/", bucket.trim_end_matches('/'));
    let mut listed = String::new();
    for (id, upload) in &uploads.lock().unwrap().open {
        let key = upload.path.strip_prefix(&bucket).unwrap_or_default();
        let key = decode(key);
        if key.starts_with(prefix) {
            listed.push_str(&format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId></Upload>"));
        }
    }
    xml(
        200,
        &format!("<ListMultipartUploadsResult>{listed}</ListMultipartUploadsResult>"),
    )
}

/// A part of a path in plain.
fn decode(escaped: &str) -> String {
    form_urlencoded::parse(format!("k={}", escaped.replace('+', "%2B")).as_bytes())
        .map(|(_, value)| value.into_owned())
        .collect()
}

fn xml(status: u16, text: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::copy_from_slice(text.as_bytes()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn error(status: u16, code: &str) -> Response<Bytes> {
    xml(
        status,
        &format!("<Error><Code>{code}</Code><Message>{code}.</Message></Error>"),
    )
}
