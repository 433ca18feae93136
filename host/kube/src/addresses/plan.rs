//! Which addresses ServiceEntries get. Pure: entries in, what to write out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

/// Label with which a ServiceEntry opts out, by `false`.
const OPT_OUT: &str = "networking.istio.io/enable-autoallocate-ip";

/// A range of addresses that were not configured right.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no range of addresses such as 240.240.0.0/16")]
pub struct RangeError(String);

/// A range that addresses are given from, one after the other, round and round: an address that was given up is not given
/// away again soon.
#[derive(Clone, Debug)]
pub struct Range {
    /// The first address, which is never given.
    start: u128,
    /// The last one.
    end: u128,
    is_v6: bool,
    next: u128,
}

impl Range {
    /// Reads a range.
    ///
    /// # Errors
    /// It is no address with the length of a prefix.
    pub fn read(text: &str) -> Result<Range, RangeError> {
        let error = || RangeError(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let length: u32 = length.parse().map_err(|_| error())?;
        let bits: u32 = if address.is_ipv6() { 128 } else { 32 };
        let host = bits_below(bits.checked_sub(length).ok_or_else(error)?);
        let start = number(address) & !host;
        Ok(Range { start, end: start | host, is_v6: address.is_ipv6(), next: start.saturating_add(1) })
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.is_v6 && (self.start..=self.end).contains(&number(address))
    }

    /// The next free address; `None` when all are taken.
    fn give(&mut self, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let first = self.start.checked_add(1).filter(|first| *first <= self.end)?;
        let in_range = |n: u128| if (first..=self.end).contains(&n) { n } else { first };
        let from = in_range(self.next);
        // As many looks as there can be taken addresses, and one more.
        let mut at = from;
        for _ in 0..=taken.len() {
            let address = self.address(at);
            let following = in_range(at.saturating_add(1));
            if !taken.contains(&address) {
                self.next = following;
                return Some(address);
            }
            at = following;
            if at == from {
                break;
            }
        }
        None
    }

    fn address(&self, n: u128) -> IpAddr {
        match u32::try_from(n) {
            Ok(n) if !self.is_v6 => Ipv4Addr::from(n).into(),
            _ => Ipv6Addr::from(n).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn bits_below(n: u32) -> u128 {
    1u128.checked_shl(n).map_or(u128::MAX, |bit| bit - 1)
}

/// A ServiceEntry, as far as addresses are concerned.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// When it was made; then namespace and name decide who is older.
    pub(super) created: String,
    /// Hosts that get addresses; none for entries that are not to have any.
    pub(super) hosts: Vec<String>,
    /// Addresses that its author gave.
    pub(super) own: BTreeSet<IpAddr>,
    /// Addresses by host, as its status has them.
    pub(super) given: BTreeMap<String, Vec<IpAddr>>,
    /// Its status lists addresses, readable or not.
    pub(super) is_listed: bool,
}

impl Entry {
    /// Reads an object of the API server.
    pub(super) fn read(object: &Value) -> Entry {
        let spec = &object["spec"];
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let resolution = spec["resolution"].as_str().unwrap_or("NONE");
        let opted_out =
            object["metadata"]["labels"][OPT_OUT].as_str().is_some_and(|text| text.eq_ignore_ascii_case("false"));
        let stated = texts(&spec["addresses"]);
        let wants = resolution != "NONE" && !opted_out && stated.is_empty();
        // What a wildcard stands for is known to DNS alone.
        let takes = |host: &String| wants && (!host.starts_with('*') || resolution == "DYNAMIC_DNS");
        let mut seen = BTreeSet::new();
        let listed = object["status"]["addresses"].as_array();
        let mut given: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for address in listed.into_iter().flatten() {
            if let Some(ip) = address["value"].as_str().and_then(|text| text.parse().ok()) {
                given.entry(address["host"].as_str().unwrap_or_default().to_owned()).or_default().push(ip);
            }
        }
        Entry {
            created: object["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned(),
            hosts: texts(&spec["hosts"]).into_iter().filter(takes).filter(|host| seen.insert(host.clone())).collect(),
            own: stated.iter().filter_map(|text| text.parse().ok()).collect(),
            given,
            is_listed: listed.is_some_and(|list| !list.is_empty()),
        }
    }
}

/// An address of a host, as it is to stand in the status.
pub(super) type Given = (String, IpAddr);

/// What has to be written, by namespace and name: all addresses of the entry.
pub(super) fn plan(
    entries: &BTreeMap<(String, String), Entry>,
    ranges: &mut [Range; 2],
) -> Vec<((String, String), Vec<Given>)> {
    let in_ranges = |address: &IpAddr, ranges: &[Range; 2]| ranges.iter().any(|range| range.contains(*address));
    // What authors wrote goes first, whenever they did.
    let mut taken: BTreeSet<IpAddr> =
        entries.values().flat_map(|entry| &entry.own).filter(|address| in_ranges(address, ranges)).copied().collect();
    let mut oldest: Vec<_> = entries.iter().collect();
    oldest.sort_by(|a, b| (&a.1.created, a.0).cmp(&(&b.1.created, b.0)));
    // Of two with one address the older keeps it; the other gets new ones for all its hosts.
    let mut loses: BTreeSet<&(String, String)> = BTreeSet::new();
    for (name, entry) in oldest.iter().filter(|(_, entry)| !entry.hosts.is_empty()) {
        let given: BTreeSet<IpAddr> =
            entry.given.values().flatten().filter(|address| in_ranges(address, ranges)).copied().collect();
        if given.is_disjoint(&taken) {
            taken.extend(given);
        } else {
            loses.insert(name);
        }
    }
    let mut written = Vec::new();
    for (name, entry) in oldest {
        let is_complete = entry.hosts.iter().collect::<BTreeSet<_>>() == entry.given.keys().collect();
        if is_complete && !loses.contains(name) {
            continue;
        }
        let mut addresses = Vec::new();
        for host in &entry.hosts {
            let kept = entry.given.get(host).filter(|_| !loses.contains(name));
            let of_host = kept.cloned().unwrap_or_else(|| {
                let fresh: Vec<IpAddr> = ranges.iter_mut().filter_map(|range| range.give(&taken)).collect();
                taken.extend(&fresh);
                fresh
            });
            addresses.extend(of_host.into_iter().map(|address| (host.clone(), address)));
        }
        // Nothing is left to give, and nothing was there.
        if !addresses.is_empty() || entry.is_listed {
            written.push((name.clone(), addresses));
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ranges() -> [Range; 2] {
        ["240.240.0.0/16", "2001:2::/48"].map(|text| Range::read(text).unwrap())
    }

    fn entry(created: &str, spec: Value, addresses: Value) -> Entry {
        Entry::read(
            &json!({"metadata": {"creationTimestamp": created}, "spec": spec, "status": {"addresses": addresses}}),
        )
    }

    /// What is written, as `name host=address ...`.
    fn planned(entries: &[(&str, Entry)], ranges: &mut [Range; 2]) -> Vec<String> {
        let entries =
            entries.iter().map(|(name, entry)| (("n".to_owned(), (*name).to_owned()), entry.clone())).collect();
        let line = |((_, name), all): ((String, String), Vec<Given>)| {
            all.into_iter().fold(name, |line, (host, address)| format!("{line} {host}={address}"))
        };
        plan(&entries, ranges).into_iter().map(line).collect()
    }

    #[test]
    fn each_host_gets_an_address_of_each_family() {
        let dns = |hosts: Value| json!({"hosts": hosts, "resolution": "DNS"});
        let entries = [
            ("b", entry("2", dns(json!(["b.com", "*.b.com", "b.com", "c.com"])), Value::Null)),
            ("a", entry("1", dns(json!(["a.com"])), Value::Null)),
            ("none", entry("0", json!({"hosts": ["x.com"]}), Value::Null)),
            (
                "stated",
                entry(
                    "0",
                    json!({"hosts": ["y.com"], "resolution": "STATIC", "addresses": ["240.240.0.2"]}),
                    Value::Null,
                ),
            ),
            ("wild", entry("9", json!({"hosts": ["*.z.com"], "resolution": "DYNAMIC_DNS"}), Value::Null)),
        ];
        let want = [
            "a a.com=240.240.0.1 a.com=2001:2::1",
            "b b.com=240.240.0.3 b.com=2001:2::2 c.com=240.240.0.4 c.com=2001:2::3",
            "wild *.z.com=240.240.0.5 *.z.com=2001:2::4",
        ];
        assert_eq!(planned(&entries, &mut ranges()), want);
    }

    #[test]
    fn what_was_given_stays_and_what_is_not_due_goes() {
        let given = |host: &str, address: &str| json!([{"host": host, "value": address}]);
        let dns = json!({"hosts": ["a.com"], "resolution": "DNS"});
        let two = json!({"hosts": ["a.com", "b.com"], "resolution": "DNS"});
        let entries = [
            ("complete", entry("1", dns.clone(), given("a.com", "240.240.7.7"))),
            ("grown", entry("2", two, given("a.com", "240.240.0.1"))),
            ("moved", entry("3", dns, given("old.com", "240.240.0.9"))),
            ("off", entry("4", json!({"hosts": ["a.com"], "resolution": "NONE"}), given("a.com", "240.240.0.8"))),
        ];
        let want = [
            "grown a.com=240.240.0.1 b.com=240.240.0.2 b.com=2001:2::1",
            "moved a.com=240.240.0.3 a.com=2001:2::2",
            "off",
        ];
        assert_eq!(planned(&entries, &mut ranges()), want);
    }

    #[test]
    fn the_older_keeps_an_address_and_an_author_all() {
        let spec = |host: &str| json!({"hosts": [host], "resolution": "DNS"});
        let given = |host: &str, address: &str| json!([{"host": host, "value": address}]);
        let entries = [
            ("young", entry("2", spec("a"), given("a", "240.240.0.5"))),
            ("old", entry("1", spec("b"), given("b", "240.240.0.5"))),
            ("taken", entry("0", spec("c"), given("c", "240.240.0.6"))),
            (
                "author",
                entry("3", json!({"hosts": ["d"], "addresses": ["240.240.0.6"], "resolution": "STATIC"}), Value::Null),
            ),
        ];
        let want = ["taken c=240.240.0.1 c=2001:2::1", "young a=240.240.0.2 a=2001:2::2"];
        assert_eq!(planned(&entries, &mut ranges()), want);
    }

    #[test]
    fn ranges_go_round_and_end() {
        let mut range = Range::read("10.0.0.9/30").unwrap();
        let taken: BTreeSet<IpAddr> = ["10.0.0.10".parse().unwrap()].into();
        let given: Vec<String> = (0..3).filter_map(|_| range.give(&taken)).map(|ip| ip.to_string()).collect();
        assert_eq!(given, ["10.0.0.9", "10.0.0.11", "10.0.0.9"]);
        let all: BTreeSet<IpAddr> = (9..12).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        assert_eq!(range.give(&all), None);
        assert_eq!(Range::read("10.0.0.0/32").unwrap().give(&taken), None);
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129"] {
            assert_eq!(Range::read(bad).unwrap_err(), RangeError(bad.to_owned()));
        }
    }
}
