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

    #[test]
    fn scopes_look_as_istioctl_reads_them() {
        let (scopes, _) = Scopes::new(Some("ads:info"), "").unwrap();
        let ads = shown(&scopes.get("ads").unwrap());
        let keys: Vec<&String> = ads.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["name", "description", "output_level", "stack_trace_level", "log_callers"]);
        assert_eq!(ads["output_level"], "info");
    }
}
