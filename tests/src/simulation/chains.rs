//! Which filter chain of a listener takes a connection.
//!
//! Envoy looks at one criterion after the other; each leaves the chains that match it best, or those that do not ask for it
//! when none matches, and what an earlier criterion threw out does not come back.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::json::{field, items, number, text};
use super::{Call, Protocol, Stop, Tls};

/// What the listener filters found out about a connection.
#[derive(Debug)]
pub(super) struct Seen {
    port: u16,
    address: String,
    server_name: String,
    transport: &'static str,
    alpn: String,
}

impl Seen {
    /// Runs the listener filters that are on for this port.
    pub(super) fn by(listener: &Value, call: &Call) -> Seen {
        let inspects = |name: &str| {
            let of_name = |filter: &&Value| text(filter, "name").as_deref() == Some(name);
            let filter = items(listener, "listener_filters").find(of_name);
            filter.is_some_and(|filter| !filter.get("filter_disabled").is_some_and(|rule| applies(rule, call.port)))
        };
        let mut seen = Seen {
            port: call.port,
            address: call.address.clone(),
            server_name: String::new(),
            transport: "raw_buffer",
            alpn: String::new(),
        };
        if inspects("envoy.filters.listener.tls_inspector") && call.tls != Tls::Plaintext {
            seen.transport = "tls";
            seen.server_name.clone_from(&call.sni);
            seen.alpn.clone_from(&call.alpn);
        }
        if inspects("envoy.filters.listener.http_inspector") && call.tls == Tls::Plaintext {
            seen.alpn = match call.protocol {
                Protocol::Tcp => "",
                Protocol::Http => "http/1.1",
                Protocol::Http2 => "h2c",
            }
            .to_owned();
        }
        seen
    }
}

/// Whether a predicate of a listener filter holds for a port.
fn applies(rule: &Value, port: u16) -> bool {
    if let Some(range) = rule.get("destination_port_range") {
        let bound = |name: &str| number(range, name).unwrap_or_default();
        return (bound("start")..bound("end")).contains(&u64::from(port));
    }
    if let Some(inner) = rule.get("not_match") {
        return !applies(inner, port);
    }
    if let Some(any) = rule.get("or_match") {
        return items(any, "rules").any(|rule| applies(rule, port));
    }
    if let Some(all) = rule.get("and_match") {
        return items(all, "rules").all(|rule| applies(rule, port));
    }
    rule.get("any_match").is_some()
}

/// The chain, or why there is none.
pub(super) fn choose<'a>(listener: &'a Value, seen: &Seen) -> Result<std::result::Result<&'a Value, Stop>> {
    let mut left: Vec<&Value> = items(listener, "filter_chains").collect();
    for chain in &left {
        let asked = chain.get("filter_chain_match");
        let source = |name: &&str| asked.is_some_and(|asked| asked.get(*name).is_some());
        if let Some(name) = ["source_type", "source_prefix_ranges", "source_ports"].iter().find(|name| source(name)) {
            bail!("chain {:?} asks for {name}, which calls do not say", text(chain, "name"));
        }
    }
    sieve(&mut left, "destination_port", |asked| Ok((asked.as_u64() == Some(seen.port.into())).then_some(0)))?;
    sieve(&mut left, "prefix_ranges", |asked| longest_prefix(asked, &seen.address))?;
    sieve(&mut left, "server_names", |asked| Ok(closest_name(asked, &seen.server_name)))?;
    sieve(&mut left, "transport_protocol", |asked| Ok((asked.as_str() == Some(seen.transport)).then_some(0)))?;
    sieve(&mut left, "application_protocols", |asked| {
        let names = asked.as_array().into_iter().flatten();
        Ok(names.filter_map(Value::as_str).any(|name| name == seen.alpn).then_some(0))
    })?;
    Ok(match left[..] {
        [chain] => Ok(chain),
        [] => listener.get("default_filter_chain").ok_or("no filter chains matched"),
        // Envoy would have refused the listener.
        _ => Err("multiple filter chains matched"),
    })
}

/// Leaves the chains whose criterion matches best; failing that those without it.
fn sieve(left: &mut Vec<&Value>, criterion: &str, rank: impl Fn(&Value) -> Result<Option<usize>>) -> Result<()> {
    let asked = |chain: &Value| chain.get("filter_chain_match").and_then(|asked| asked.get(criterion)).cloned();
    let ranks: Vec<Option<usize>> =
        left.iter().map(|chain| asked(chain).map_or(Ok(None), |asked| rank(&asked))).collect::<Result<_>>()?;
    let best = ranks.iter().flatten().max().copied();
    let mut ranks = ranks.into_iter();
    left.retain(|chain| {
        let rank = ranks.next().flatten();
        if best.is_some() { rank == best } else { asked(chain).is_none() }
    });
    Ok(())
}

/// Length of the longest of these prefixes that the address lies in.
fn longest_prefix(ranges: &Value, address: &str) -> Result<Option<usize>> {
    let address: IpAddr = address.parse().with_context(|| format!("{address} is no address"))?;
    let mut best = None;
    for range in ranges.as_array().into_iter().flatten() {
        let prefix = text(range, "address_prefix").unwrap_or_default();
        let prefix: IpAddr = prefix.parse().with_context(|| format!("{prefix} is no address"))?;
        let length = number(range, "prefix_len").and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
        if leading_bits(prefix, length).is_some() && leading_bits(prefix, length) == leading_bits(address, length) {
            best = best.max(Some(length));
        }
    }
    Ok(best)
}

/// The first bits of an address, with the family's width; none where it has not so many.
fn leading_bits(address: IpAddr, length: usize) -> Option<(usize, u128)> {
    let (width, bits) = match address {
        IpAddr::V4(address) => (32, u128::from(address.to_bits())),
        IpAddr::V6(address) => (128, address.to_bits()),
    };
    let dropped = u32::try_from(width - length.min(width)).ok()?;
    (length <= width).then(|| (width, bits.checked_shr(dropped).unwrap_or_default()))
}

/// How closely the closest of these names fits: a name itself before the longest wildcard.
fn closest_name(names: &Value, sni: &str) -> Option<usize> {
    let rank = |name: &Value| {
        let name = name.as_str()?;
        if name == sni {
            return Some(usize::MAX);
        }
        let suffix = name.strip_prefix('*')?;
        (!sni.is_empty() && sni.ends_with(suffix)).then_some(name.len())
    };
    names.as_array().into_iter().flatten().filter_map(rank).max()
}

/// Whether a chain wants the mesh's mutual TLS: the workload's own certificate, and one of the client.
pub(super) fn asks_for_mutual_tls(chain: &Value, call: &Call) -> bool {
    let Some(context) = chain.pointer("/transport_socket/typed_config") else { return false };
    let certificate = field(context, "/common_tls_context/tls_certificate_sds_secret_configs/0/name");
    certificate.as_ref() == Some(&call.mtls_secret_config_name)
        && context.get("require_client_certificate").and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listener(chains: &Value) -> Value {
        let inspector = |name: &str| json!({"name": format!("envoy.filters.listener.{name}_inspector")});
        json!({"listener_filters": [inspector("tls"), inspector("http")], "filter_chains": chains})
    }

    fn chosen(listener: &Value, call: &Call) -> std::result::Result<String, Stop> {
        let mut call = call.clone();
        call.fill_defaults();
        choose(listener, &Seen::by(listener, &call)).unwrap().map(|chain| text(chain, "name").unwrap())
    }

    #[test]
    fn what_an_earlier_criterion_threw_out_stays_out() {
        let listener = listener(&json!([
            {"name": "port", "filter_chain_match": {"destination_port": 80, "application_protocols": ["h2"]}},
            {"name": "any"},
        ]));
        assert_eq!(chosen(&listener, &Call { port: 81, ..Call::default() }), Ok("any".into()));
        let call = Call { port: 80, protocol: Protocol::Http, ..Call::default() };
        assert_eq!(chosen(&listener, &call), Err("no filter chains matched"));
    }

    #[test]
    fn names_and_prefixes_by_length() {
        let listener = listener(&json!([
            {"name": "wide", "filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}},
            {"name": "narrow", "filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.1.0.0", "prefix_len": 16}]}},
            {"name": "zero", "filter_chain_match": {"prefix_ranges": [{"address_prefix": "0.0.0.0", "prefix_len": 0}]}},
        ]));
        for (address, name) in [("10.1.2.3", "narrow"), ("10.2.2.3", "wide"), ("11.0.0.1", "zero")] {
            assert_eq!(chosen(&listener, &Call { address: address.into(), ..Call::default() }), Ok(name.into()));
        }
        let names = json!(["*.example.com", "*.com", "a.example.com"]);
        assert_eq!(closest_name(&names, "a.example.com"), Some(usize::MAX));
        assert!(closest_name(&names, "b.example.com") > closest_name(&names, "b.com"));
        assert_eq!(closest_name(&names, ""), None);
    }

    #[test]
    fn a_filter_that_is_off_sees_nothing() {
        let mut listener = listener(&json!([
            {"name": "tls", "filter_chain_match": {"transport_protocol": "tls"}},
            {"name": "raw"},
        ]));
        let call = Call { port: 80, tls: Tls::Tls, ..Call::default() };
        assert_eq!(chosen(&listener, &call), Ok("tls".into()));
        listener["listener_filters"][0]["filter_disabled"] =
            json!({"or_match": {"rules": [{"destination_port_range": {"start": 80, "end": 81}}]}});
        assert_eq!(chosen(&listener, &call), Ok("raw".into()));
        assert_eq!(chosen(&listener, &Call { port: 81, ..call }), Ok("tls".into()));
    }
}
