//! Header operations: what is added, set and removed, and the authority that a header operation stands for.
//!
//! Nothing warns or rejects. Pseudo headers and `host` are no headers to Envoy: setting them rewrites the authority, all
//! else about them is dropped.

use std::collections::BTreeMap;

use trysail_sdk::proto::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use trysail_sdk::proto::istio::networking::v1alpha3::Headers;

/// Header operations in Envoy's form.
#[derive(Default)]
pub struct Operations {
    /// Set first, then added; each sorted by name.
    pub request_add: Vec<HeaderValueOption>,
    /// As declared.
    pub request_remove: Vec<String>,
    /// As `request_add`.
    pub response_add: Vec<HeaderValueOption>,
    /// As declared.
    pub response_remove: Vec<String>,
    /// What the Host header is to become; `set` goes before `add`.
    pub authority: Option<String>,
}

/// Translates header operations.
pub fn operations(headers: &Headers) -> Operations {
    let mut out = Operations::default();
    if let Some(request) = &headers.request {
        let set = append(&mut out.request_add, &request.set, HeaderAppendAction::OverwriteIfExistsOrAdd);
        let add = append(&mut out.request_add, &request.add, HeaderAppendAction::AppendIfExistsOrAdd);
        out.authority = set.or(add);
        out.request_remove = removable(&request.remove);
    }
    if let Some(response) = &headers.response {
        append(&mut out.response_add, &response.set, HeaderAppendAction::OverwriteIfExistsOrAdd);
        append(&mut out.response_add, &response.add, HeaderAppendAction::AppendIfExistsOrAdd);
        out.response_remove = removable(&response.remove);
    }
    out
}

/// Tells clients for a day that the port has HTTP/3, too.
pub fn alt_svc(port: u32) -> HeaderValueOption {
    let value = format!("h3=\":{port}\"; ma=86400");
    let header = HeaderValue { key: "alt-svc".to_owned(), value, ..Default::default() };
    let append_action = HeaderAppendAction::AppendIfExistsOrAdd.into();
    HeaderValueOption { header: Some(header), append_action, ..Default::default() }
}

fn append(
    to: &mut Vec<HeaderValueOption>,
    headers: &BTreeMap<String, String>,
    action: HeaderAppendAction,
) -> Option<String> {
    let mut authority = None;
    for (key, value) in headers {
        if key.eq_ignore_ascii_case(":authority") || key.eq_ignore_ascii_case("host") {
            authority = Some(value.clone()).filter(|v| !v.is_empty());
        }
        if !is_internal(key) {
            let header = HeaderValue { key: key.clone(), value: value.clone(), ..Default::default() };
            to.push(HeaderValueOption { header: Some(header), append_action: action.into(), ..Default::default() });
        }
    }
    authority
}

fn removable(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| !is_internal(name)).cloned().collect()
}

fn is_internal(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_sdk::proto::istio::networking::v1alpha3::headers::HeaderOperations;

    #[test]
    fn authority_is_no_header() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let request = HeaderOperations {
            set: BTreeMap::from([pair("Host", "set.test"), pair("x-b", "1")]),
            add: BTreeMap::from([pair(":authority", "add.test"), pair("x-a", "2")]),
            remove: vec!["x-c".into(), ":path".into()],
        };
        let operations = operations(&Headers { request: Some(request), response: None });
        assert_eq!(operations.authority.as_deref(), Some("set.test"));
        let keys: Vec<_> =
            operations.request_add.iter().map(|h| (h.header.clone().unwrap().key, h.append_action)).collect();
        assert_eq!(keys, [("x-b".to_owned(), 2), ("x-a".to_owned(), 0)]);
        assert_eq!(operations.request_remove, ["x-c"]);
    }
}
