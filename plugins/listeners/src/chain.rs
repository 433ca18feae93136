//! Filter chains of outbound listeners and gateways: what they match, and when two of them would be the same to Envoy.

use std::collections::BTreeSet;

use trysail_sdk::Message;
use trysail_sdk::proto::envoy::config::core::v3::Metadata;
use trysail_sdk::proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch};

use crate::net::{self, ANY_IPV4};
use crate::parts::CHAIN_TRANSPORT_SOCKET;

/// A chain before it is known whether it stays among the others.
#[derive(Default)]
pub struct Chain {
    /// Names in the ClientHello; `*` stands for all.
    pub sni: Vec<String>,
    /// Destination addresses and prefixes.
    pub cidrs: Vec<String>,
    /// Application protocols that an inspector detects.
    pub alpn: Vec<String>,
    /// Transport protocol that an inspector detects, or empty.
    pub transport: &'static str,
    /// Names the object that the chain came from.
    pub metadata: Option<Metadata>,
    /// Its filters, as fields of the chain.
    pub filters: Message,
    /// A filter needs the name of the ClientHello.
    pub reads_sni: bool,
    /// Transport socket, if TLS ends here.
    pub socket: Option<Message>,
}

/// What Envoy compares of two chains: transport, application protocols, names and networks.
#[derive(PartialEq, Eq, Debug)]
pub struct Identity<'a>(&'a str, &'a [String], BTreeSet<&'a str>, BTreeSet<String>);

impl Chain {
    /// Does the chain match all connections, so that it becomes the default?
    pub fn matches_all(&self) -> bool {
        (self.sni.is_empty() || self.any_name())
            && self.alpn.is_empty()
            && self.transport.is_empty()
            && self.cidrs.is_empty()
    }

    fn any_name(&self) -> bool {
        self.sni.iter().any(|name| name == "*")
    }

    /// What it matches, in a form that does not depend on order or spelling. Envoy takes no two chains of one identity.
    pub fn identity(&self) -> Identity<'_> {
        let names = self.sni.iter().map(String::as_str).filter(|name| *name != "*").collect();
        let unspecified = |cidr: &&String| net::parse_prefix(cidr).is_some_and(|(ip, _)| ip.to_string() != ANY_IPV4);
        let networks = self.cidrs.iter().filter(unspecified).map(|cidr| net::masked(cidr)).collect();
        Identity(self.transport, &self.alpn, names, networks)
    }

    /// What Envoy matches; none for a chain that takes everything.
    fn filter_chain_match(&self) -> Option<FilterChainMatch> {
        if self.matches_all() {
            return None;
        }
        let mut names = if self.any_name() { Vec::new() } else { self.sni.clone() };
        names.sort();
        let mut cidrs = self.cidrs.clone();
        cidrs.sort();
        Some(FilterChainMatch {
            server_names: names,
            prefix_ranges: cidrs
                .iter()
                .filter_map(|c| net::cidr_range(c))
                .filter(|r| r.address_prefix != ANY_IPV4)
                .collect(),
            application_protocols: self.alpn.clone(),
            transport_protocol: self.transport.into(),
            ..Default::default()
        })
    }

    /// The message.
    pub fn message(self, connect_timeout: Option<trysail_sdk::prost_types::Duration>) -> Message {
        let head = FilterChain { filter_chain_match: self.filter_chain_match(), ..Default::default() };
        let tail = FilterChain {
            metadata: self.metadata,
            transport_socket_connect_timeout: connect_timeout,
            ..Default::default()
        };
        let mut message = Message::of(&head);
        message.parts.extend(self.filters.parts);
        if let Some(socket) = self.socket {
            message = message.field(CHAIN_TRANSPORT_SOCKET, socket);
        }
        message.fields(&tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(sni: &[&str], cidrs: &[&str]) -> Chain {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        Chain { sni: owned(sni), cidrs: owned(cidrs), ..Default::default() }
    }

    #[test]
    fn identity_ignores_order_stars_and_host_bits() {
        assert_eq!(chain(&["b", "a"], &["10.1.2.3/8"]).identity(), chain(&["a", "b"], &["10.9.9.9/8"]).identity());
        assert_eq!(chain(&["*"], &[]).identity(), chain(&[], &[]).identity());
        assert_ne!(chain(&["a"], &[]).identity(), chain(&[], &[]).identity());
    }

    #[test]
    fn only_unrestricted_chains_match_all() {
        assert!(chain(&[], &[]).matches_all() && chain(&["*"], &[]).matches_all());
        assert!(!chain(&["a"], &[]).matches_all() && !chain(&[], &["10.0.0.0/8"]).matches_all());
    }

    #[test]
    fn a_prefix_of_everything_is_left_out() {
        let found = chain(&[], &["0.0.0.0/0", "10.0.0.1"]).filter_chain_match().expect("a match");
        assert_eq!(found.prefix_ranges.len(), 1);
        assert_eq!(found.prefix_ranges[0].prefix_len, Some(32));
    }
}
