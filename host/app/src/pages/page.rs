//! A page: status, content type and body, however it is carried.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use serde_json::Value;

/// What somebody who asked gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub status: StatusCode,
    /// Unset for an empty body.
    pub content_type: Option<&'static str>,
    pub body: Bytes,
}

const TEXT: &str = "text/plain; charset=utf-8";

impl Page {
    /// A body of some type.
    pub fn of(content_type: &'static str, body: impl Into<Bytes>) -> Page {
        Page { status: StatusCode::OK, content_type: Some(content_type), body: body.into() }
    }

    /// Text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Page {
        Page { status, ..Page::of(TEXT, text.into()) }
    }

    /// No body.
    pub fn empty(status: StatusCode) -> Page {
        Page { status, content_type: None, body: Bytes::new() }
    }

    /// As Go's server says it.
    pub fn not_found() -> Page {
        Page::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    /// JSON, on one line unless it is for people.
    pub fn json(value: &Value, pretty: bool) -> Page {
        Page::of("application/json", if pretty { format!("{value:#}") } else { value.to_string() })
    }

    pub fn into_response(self) -> Response<Full<Bytes>> {
        let Page { status, content_type, body } = self;
        let mut response = Response::builder().status(status);
        if let Some(content_type) = content_type {
            response = response.header("content-type", content_type);
        }
        if status == StatusCode::NOT_FOUND {
            response = response.header("x-content-type-options", "nosniff");
        }
        response.body(Full::new(body)).expect("a status and a content type of ours are well-formed")
    }
}
