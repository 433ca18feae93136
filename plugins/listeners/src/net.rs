//! IP addresses, prefixes and Go's durations as istiod reads them.

use std::net::IpAddr;

use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::envoy::config::core::v3::CidrRange;

/// The address that stands for "all IPv4 addresses", and for a service without an address of its own.
pub const ANY_IPV4: &str = "0.0.0.0";
/// All IPv6 addresses.
pub const ANY_IPV6: &str = "::";

/// An address and the length of its prefix; a bare address is as long as its family.
pub fn parse_prefix(text: &str) -> Option<(IpAddr, u8)> {
    let Some((ip, bits)) = text.split_once('/') else {
        let ip: IpAddr = text.parse().ok()?;
        return Some((ip, width(&ip)));
    };
    let ip: IpAddr = ip.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= width(&ip)).then_some((ip, bits))
}

fn width(ip: &IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// A prefix as Envoy writes it, the address as it was given.
pub fn cidr_range(text: &str) -> Option<CidrRange> {
    let (ip, bits) = parse_prefix(text)?;
    Some(CidrRange { address_prefix: ip.to_string(), prefix_len: Some(u32::from(bits)) })
}

/// The network of a prefix in one spelling: `10.1.2.3/8` is `10.0.0.0/8`. Other texts stay.
pub fn masked(text: &str) -> String {
    let Some((ip, bits)) = parse_prefix(text) else { return text.to_owned() };
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            format!("{}/{bits}", std::net::Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            format!("{}/{bits}", std::net::Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

/// The addresses or prefixes of the families that a proxy has. A proxy of both keeps all, those of the first one's
/// family before the others; what is no address is left out.
pub fn of_families(addresses: &[String], v4: bool, v6: bool) -> Vec<String> {
    let family = |a: &String| parse_prefix(a).map(|(ip, _)| ip.is_ipv4());
    let pick = |want: bool| addresses.iter().filter(move |a| family(a) == Some(want)).cloned();
    match (v4, v6) {
        (true, false) => pick(true).collect(),
        (false, true) => pick(false).collect(),
        _ => match addresses.first().and_then(family) {
            Some(first) => pick(first).chain(pick(!first)).collect(),
            None => pick(true).chain(pick(false)).collect(),
        },
    }
}

/// Can other hosts reach this address: neither unspecified nor loopback, link-local or multicast?
pub fn is_global_unicast(address: &str) -> bool {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast())
        }
        Ok(IpAddr::V6(ip)) => {
            let link_local = ip.segments()[0] & 0xffc0 == 0xfe80;
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
        }
        Err(_) => false,
    }
}

/// A duration in Go's notation, `1m30s` or `100ms`; none when malformed.
pub fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::default());
    }
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos += whole * scale;
        let mut unit = scale;
        for digit in fraction.chars() {
            unit /= 10;
            nanos += i128::from(digit.to_digit(10)?) * unit;
        }
        rest = tail;
    }
    let nanos = if negative { -nanos } else { nanos };
    Some(Duration {
        seconds: i64::try_from(nanos / 1_000_000_000).ok()?,
        nanos: i32::try_from(nanos % 1_000_000_000).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go() {
        assert_eq!(go_duration("1m30s"), Some(Duration { seconds: 90, nanos: 0 }));
        assert_eq!(go_duration("1.5s"), Some(Duration { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(go_duration("100ms"), Some(Duration { seconds: 0, nanos: 100_000_000 }));
        assert_eq!(go_duration("0s"), Some(Duration::default()));
        assert_eq!(go_duration("30 s"), None);
        assert_eq!(go_duration("30"), None);
        assert_eq!(go_duration("invalid-30s"), None);
    }

    #[test]
    fn masks() {
        assert_eq!(masked("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(masked("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(masked("1.2.3.4/0"), "0.0.0.0/0");
        assert_eq!(masked("2001:db8::1/32"), "2001:db8::/32");
    }

    #[test]
    fn families() {
        let both = ["::1".to_owned(), "10.0.0.1".to_owned()];
        assert_eq!(of_families(&both, true, false), ["10.0.0.1"]);
        assert_eq!(of_families(&both, true, true), ["::1", "10.0.0.1"]);
    }

    #[test]
    fn global_addresses() {
        assert!(is_global_unicast("10.0.0.1") && is_global_unicast("2001:db8::1"));
        assert!(!is_global_unicast("127.0.0.1") && !is_global_unicast("fe80::1") && !is_global_unicast("0.0.0.0"));
    }
}
