//! ControlZ: istiod's page for looking at and changing log levels while it runs, which `istioctl admin log` speaks.
//!
//! On the own machine only, as in istiod; and changes are not taken from web pages that happen to be open there.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::logging::{Level, Scope, Scopes};
use crate::pages::page::Page;
use crate::version;

/// Bytes of a request that are read.
const MAX_BODY: usize = 64 << 10;

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, scopes: Arc<Scopes>) {
    let answer = move |request: Request<Incoming>, _: SocketAddr| {
        let scopes = scopes.clone();
        async move { answer(&scopes, request).await }
    };
    crate::pages::listen(listener, answer).await;
}

async fn answer(scopes: &Scopes, request: Request<Incoming>) -> Page {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match (method, path.as_str(), path.strip_prefix("/scopej/")) {
        (Method::GET, "/scopej" | "/scopej/", _) => Page::json(&scopes.all().iter().map(shown).collect(), false),
        (_, _, Some(name)) if name.contains('/') => Page::not_found(),
        (Method::GET, _, Some(name)) => match scopes.get(name) {
            Some(scope) => Page::json(&shown(&scope), false),
            None => unknown(name),
        },
        (Method::PUT, _, Some(name)) => {
            if request.headers().contains_key("origin") {
                return Page::empty(StatusCode::FORBIDDEN);
            }
            let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map(|body| body.to_bytes());
            match body.map_err(|error| error.to_string()) {
                Ok(body) => change(scopes, name, &body),
                Err(error) => undecodable(&error),
            }
        }
        (Method::GET, "/versionj" | "/versionj/", _) => Page::json(&version::info(), false),
        _ => Page::not_found(),
    }
}

fn shown(scope: &Scope) -> Value {
    json!({
        "name": scope.name,
        "description": scope.description,
        "output_level": scope.level.name(),
        // Nothing here takes stack traces.
        "stack_trace_level": Level::None.name(),
        "log_callers": scope.callers,
    })
}

/// A change as istioctl sends it.
#[derive(Deserialize)]
struct Change {
    #[serde(default)]
    output_level: String,
    #[serde(default)]
    log_callers: bool,
}

fn change(scopes: &Scopes, name: &str, body: &[u8]) -> Page {
    let change: Change = match serde_json::from_slice(body) {
        Ok(change) => change,
        Err(error) => return undecodable(&error.to_string()),
    };
    // What is no level changes nothing, as in istiod.
    let level = change.output_level.parse().ok();
    if !scopes.set(name, level, change.log_callers) {
        return unknown(name);
    }
    tracing::info!(scope = name, level = change.output_level, "log level changed");
    Page::empty(StatusCode::ACCEPTED)
}

fn unknown(name: &str) -> Page {
    Page::text(StatusCode::BAD_REQUEST, format!("unknown scope name: {name}"))
}

fn undecodable(why: &str) -> Page {
    Page::text(StatusCode::BAD_REQUEST, format!("unable to decode request: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_changed() {
        let (scopes, _) = Scopes::new(None, "").unwrap();
        let body = br#"{"name":"ads","output_level":"debug","stack_trace_level":"none","log_callers":true}"#;
        assert_eq!(change(&scopes, "ads", body).status, StatusCode::ACCEPTED);
        let scope = scopes.get("ads").unwrap();
        assert_eq!((scope.level, scope.callers), (Level::Debug, true));
        assert_eq!(change(&scopes, "scope", body), unknown("scope"));
        assert_eq!(change(&scopes, "ads", b"{").status, StatusCode::BAD_REQUEST);
        change(&scopes, "ads", br#"{"output_level":"loud"}"#);
        assert_eq!(scopes.get("ads").unwrap().level, Level::Debug);
    }

    #[tokio::test]
    async fn levels_are_changed_over_http_and_not_by_web_pages() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scopes = Arc::new(Scopes::new(None, "").unwrap().0);
        let serving = tokio::spawn(serve(listener, scopes.clone()));
        let ask = async |head: &str, body: &str| {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let length = body.len();
            let request = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let body = r#"{"output_level":"debug"}"#;
        let status = |answer: String| answer.split(' ').nth(1).unwrap().to_owned();
        let foreign = ask("PUT /scopej/ads HTTP/1.1\r\norigin: http://evil.test", body).await;
        assert_eq!((status(foreign), scopes.get("ads").unwrap().level), ("403".to_owned(), Level::Warn));
        assert_eq!(status(ask("PUT /scopej/ads HTTP/1.1", body).await), "202");
        assert_eq!(scopes.get("ads").unwrap().level, Level::Debug);
        // `ports/endpoints.json` of the recordings.
        assert!(ask("GET /scopej/scope HTTP/1.1", "").await.ends_with("unknown scope name: scope"));
        assert_eq!(status(ask("GET /scopej/scope/ads HTTP/1.1", "").await), "404");
        assert!(ask("GET /scopej/ HTTP/1.1", "").await.contains(r#""output_level":"debug""#));
        assert!(ask("GET /versionj/ HTTP/1.1", "").await.contains(r#""tag":"1.31.0""#));
        serving.abort();
    }

    #[test]
    fn scopes_look_as_istioctl_reads_them() {
        let (scopes, _) = Scopes::new(Some("ads:info"), "").unwrap();
        let ads = shown(&scopes.get("ads").unwrap());
        let keys: Vec<&String> = ads.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["name", "description", "output_level", "stack_trace_level", "log_callers"]);
        assert_eq!(ads["output_level"], "info");
    }
}
