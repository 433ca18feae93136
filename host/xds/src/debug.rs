//! Debug types: questions about the control plane itself, asked over a stream.
//!
//! What the answers hold is not known here, only how questions come and answers go: one at a time, each question
//! answered, also when it looks like an ACK, as in istiod.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tonic::Status;
use trysail_model::Identity;
use trysail_proto::envoy::config::core::v3::ControlPlane;
use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
use trysail_proto::prost_types::Any;

use crate::request::{Protocol, Request};
use crate::server::Server;

/// A page by its path and query; one name.
pub const PAGE: &str = "istio.io/debug";
/// How far all proxies are, for `istioctl proxy-status` and `version`; no names.
pub const SYNC: &str = "istio.io/debug/syncz";
/// What one proxy was sent; one name, a part of its connection id.
pub const CONFIG_DUMP: &str = "istio.io/debug/config_dump";

/// Questions that a stream may have open; whoever asks more does not read the answers.
const MAX_WAITING: usize = 16;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The type URL.
    pub type_url: String,
    /// Names, sorted.
    pub names: BTreeSet<String>,
}

/// A resource of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Name; shown in the delta protocol alone.
    pub name: String,
    /// Type of the body.
    pub type_url: String,
    /// The body.
    pub body: Bytes,
}

/// Knows what goes on. Calls may compute, and run on the server's own threads.
pub trait Debug: Send + Sync {
    /// Answers a caller, who is unset on the plaintext port.
    ///
    /// # Errors
    /// The status that the stream ends with: who asks is unknown, or may not ask that.
    fn answer(&self, server: &Server, caller: Option<&Identity>, question: &Question) -> Result<Vec<Answer>, Status>;

    /// Says which control plane this is, as JSON, for [`SYNC`].
    fn identifier(&self) -> String;
}

/// The questions of one stream.
#[derive(Default)]
pub(crate) struct Desk {
    /// Names by type: in the delta protocol they last.
    names: BTreeMap<String, BTreeSet<String>>,
    waiting: VecDeque<Question>,
    answered: VecDeque<(Question, Vec<Answer>)>,
    is_asking: bool,
}

impl Desk {
    /// Takes a request in.
    pub(crate) fn on_request(&mut self, request: &Request) -> Result<(), Status> {
        if request.error.is_some() {
            return Ok(());
        }
        if self.waiting.len() + self.answered.len() >= MAX_WAITING {
            return Err(Status::resource_exhausted("too many debug requests without reading the answers"));
        }
        let asked: BTreeSet<String> = request.names.iter().cloned().collect();
        let names = match request.protocol {
            Protocol::Sotw => asked,
            Protocol::Delta => {
                // Two types are known by name and the rest is one page, so this cannot grow by much.
                if self.names.len() >= MAX_WAITING {
                    self.names.clear();
                }
                let names = self.names.entry(request.type_url.clone()).or_default();
                names.extend(asked);
                names.retain(|name| !request.unsubscribe.contains(name));
                names.clone()
            }
        };
        if request.type_url == PAGE && names.len() != 1 {
            return Err(Status::invalid_argument("exactly one debug request is required"));
        }
        self.waiting.push_back(Question { type_url: request.type_url.clone(), names });
        Ok(())
    }

    /// True when something waits for the transport.
    pub(crate) fn wants_permit(&self) -> bool {
        !self.answered.is_empty() || (!self.waiting.is_empty() && !self.is_asking)
    }

    /// The next question to be answered; one at a time.
    pub(crate) fn next_question(&mut self) -> Option<Question> {
        if self.is_asking {
            return None;
        }
        let next = self.waiting.pop_front();
        self.is_asking = next.is_some();
        next
    }

    /// A question has its answer, or none for ever.
    pub(crate) fn finish(&mut self, answered: Option<(Question, Vec<Answer>)>) {
        self.is_asking = false;
        self.answered.extend(answered);
    }

    /// The next response.
    pub(crate) fn next_answer(&mut self) -> Option<(Question, Vec<Answer>)> {
        self.answered.pop_front()
    }
}

/// An answer as a message of the protocol.
pub(crate) fn encode(
    protocol: Protocol,
    question: &Question,
    answers: Vec<Answer>,
    version: &Arc<str>,
    nonce: String,
    identifier: Option<String>,
) -> Bytes {
    let any = |answer: Answer| Any { type_url: answer.type_url, value: answer.body.to_vec() };
    let control_plane = identifier.filter(|_| question.type_url == SYNC).map(|identifier| ControlPlane { identifier });
    let (type_url, version) = (question.type_url.clone(), version.to_string());
    match protocol {
        Protocol::Sotw => DiscoveryResponse {
            version_info: version,
            resources: answers.into_iter().map(any).collect(),
            type_url,
            nonce,
            control_plane,
            ..Default::default()
        }
        .encode_to_vec(),
        Protocol::Delta => DeltaDiscoveryResponse {
            system_version_info: version,
            resources: answers
                .into_iter()
                .map(|answer| Resource { name: answer.name.clone(), resource: Some(any(answer)), ..Default::default() })
                .collect(),
            type_url,
            nonce,
            control_plane,
            ..Default::default()
        }
        .encode_to_vec(),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(protocol: Protocol, type_url: &str, names: &[&str]) -> Request {
        Request {
            protocol,
            node: None,
            type_url: type_url.to_owned(),
            nonce: String::new(),
            error: None,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            unsubscribe: Vec::new(),
            initial_versions: BTreeMap::new(),
        }
    }

    #[test]
    fn a_page_has_exactly_one_name() {
        let mut desk = Desk::default();
        for names in [&[][..], &["syncz", "adsz"]] {
            let status = desk.on_request(&request(Protocol::Sotw, PAGE, names)).unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (tonic::Code::InvalidArgument, "exactly one debug request is required")
            );
        }
        desk.on_request(&request(Protocol::Sotw, PAGE, &["syncz"])).unwrap();
        let question = desk.next_question().unwrap();
        assert!(question.names.contains("syncz"));
        assert!(desk.next_question().is_none(), "one at a time");
        desk.finish(Some((question, Vec::new())));
        assert!(desk.wants_permit() && desk.next_answer().is_some() && !desk.wants_permit());
    }

    #[test]
    fn delta_names_last() {
        let mut desk = Desk::default();
        desk.on_request(&request(Protocol::Delta, PAGE, &["syncz"])).unwrap();
        desk.on_request(&request(Protocol::Delta, PAGE, &[])).unwrap();
        assert_eq!(desk.waiting.len(), 2, "also what looks like an ACK is answered");
        assert!(desk.on_request(&request(Protocol::Delta, PAGE, &["adsz"])).is_err());
    }

    #[test]
    fn whoever_does_not_read_is_turned_away() {
        let mut desk = Desk::default();
        for _ in 0..MAX_WAITING {
            desk.on_request(&request(Protocol::Sotw, SYNC, &[])).unwrap();
        }
        let status = desk.on_request(&request(Protocol::Sotw, SYNC, &[])).unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }
}
