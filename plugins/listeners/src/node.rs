//! What the calls ask of the proxy: each function is one narrow question.

use trysail_sdk::prost_types::Duration;
use trysail_sdk::{Ctx, Failure};

use crate::net::{self, ANY_IPV4, ANY_IPV6};

/// How traffic gets to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interception {
    /// iptables REDIRECT.
    Redirect,
    /// iptables TPROXY: listeners are transparent.
    Tproxy,
    /// Not at all: listeners have ports of their own.
    None,
}

/// The interception mode; what is not known is REDIRECT.
pub fn interception(ctx: &Ctx<'_>) -> Interception {
    match ctx.proxy_metadata("INTERCEPTION_MODE").as_deref() {
        Some("TPROXY") => Interception::Tproxy,
        Some("NONE") => Interception::None,
        _ => Interception::Redirect,
    }
}

/// IP families of the proxy's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// It has an IPv4 address.
    pub v4: bool,
    /// It has an IPv6 address.
    pub v6: bool,
}

impl Families {
    /// Asks.
    pub fn of(ctx: &Ctx<'_>) -> Self {
        match ctx.proxy("ip-families").as_deref() {
            Some("ipv6") => Families { v4: false, v6: true },
            Some("dual") => Families { v4: true, v6: true },
            _ => Families { v4: true, v6: false },
        }
    }

    /// Addresses that stand for all addresses, the first one is the primary bind.
    pub fn wildcards(self) -> Vec<String> {
        self.pick(ANY_IPV4, ANY_IPV6)
    }

    /// Loopback addresses.
    pub fn loopbacks(self) -> Vec<String> {
        self.pick("127.0.0.1", "::1")
    }

    /// The primary wildcard.
    pub fn wildcard(self) -> &'static str {
        if self.v4 { ANY_IPV4 } else { ANY_IPV6 }
    }

    /// Has it both?
    pub fn dual(self) -> bool {
        self.v4 && self.v6
    }

    fn pick(self, v4: &str, v6: &str) -> Vec<String> {
        let mut out = Vec::with_capacity(2);
        if self.v4 {
            out.push(v4.to_owned());
        }
        if self.v6 {
            out.push(v6.to_owned());
        }
        out
    }
}

/// A metadata value that is a boolean or its text.
pub fn is_true(ctx: &Ctx<'_>, key: &str) -> bool {
    matches!(ctx.proxy_metadata(key).as_deref(), Some("true" | "True" | "TRUE" | "1" | "t" | "T"))
}

/// The proxy's idle timeout for TCP; malformed values count as unset.
pub fn idle_timeout(ctx: &Ctx<'_>) -> Option<Duration> {
    ctx.proxy_metadata("IDLE_TIMEOUT").and_then(|text| net::go_duration(&text))
}

/// Ports that the bootstrap configuration of the proxy takes, so that no listener may have them on all addresses.
pub struct StaticPorts(Vec<u32>);

impl StaticPorts {
    /// Asks.
    pub fn of(ctx: &Ctx<'_>) -> Self {
        let keys = [
            "ENVOY_STATUS_PORT",
            "ENVOY_PROMETHEUS_PORT",
            "ENVOY_SECURE_METRICS_PORT",
            "ENVOY_SECURE_MERGED_METRICS_PORT",
        ];
        StaticPorts(
            keys.iter().filter_map(|key| ctx.proxy_metadata(key)?.parse().ok()).filter(|port| *port != 0).collect(),
        )
    }

    /// Is the port taken?
    pub fn has(&self, port: u32) -> bool {
        self.0.contains(&port)
    }
}

/// Ports below 1024 that an unprivileged proxy cannot listen on itself.
pub fn privileged(port: u32) -> bool {
    0 < port && port < 1024
}

/// How many connections a listener takes from the kernel at once; none for "all".
pub fn connections_per_event(value: &str) -> Option<u32> {
    value.parse::<u32>().ok().filter(|n| *n > 0)
}

/// What plain HTTP looks like to the HTTP inspector. HTTP/1.0 is left to the TCP chain unless it is switched on.
pub fn plaintext_alpn(ctx: &Ctx<'_>) -> Result<Vec<String>, Failure> {
    let [http10] = ctx.flags(["PILOT_HTTP10"])?;
    let names: &[&str] = if http10 { &["http/1.0", "http/1.1", "h2c"] } else { &["http/1.1", "h2c"] };
    Ok(names.iter().map(|n| (*n).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answers;

    #[test]
    fn modes_and_families() {
        let host = Answers::default().text("proxy", &["metadata:INTERCEPTION_MODE"], "TPROXY").text(
            "proxy",
            &["ip-families"],
            "dual",
        );
        let ctx = Ctx::new(&host);
        assert_eq!(interception(&ctx), Interception::Tproxy);
        assert_eq!(Families::of(&ctx).wildcards(), ["0.0.0.0", "::"]);
        assert_eq!(Families { v4: false, v6: true }.wildcard(), "::");
    }

    #[test]
    fn malformed_idle_timeout_is_unset() {
        let host = Answers::default().text("proxy", &["metadata:IDLE_TIMEOUT"], "30 s");
        assert_eq!(idle_timeout(&Ctx::new(&host)), None);
    }
}
