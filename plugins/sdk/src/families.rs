//! Which of a service's addresses a proxy can reach: stages must agree on it.

use crate::{Ctx, Failure};

/// The IP families that a proxy takes of a service's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// It has both, but dual stack is off: that of the first address.
    First,
    /// Both.
    All,
}

impl Families {
    /// Asks for them. With `needed` false no address is going to be chosen by its family, so that nothing is asked of the proxy.
    ///
    /// # Errors
    /// When an answer cannot be decoded.
    pub fn ask(ctx: &Ctx<'_>, needed: bool) -> Result<Self, Failure> {
        let own = if needed { ctx.proxy("ip-families").unwrap_or_default() } else { String::new() };
        Ok(match own.as_str() {
            "dual" if ctx.flags(["ISTIO_DUAL_STACK", "PILOT_ENABLE_AMBIENT"])?.contains(&true) => Families::All,
            "dual" => Families::First,
            "ipv6" => Families::Ipv6,
            _ => Families::Ipv4,
        })
    }

    /// Those of a service's addresses that the proxy can reach, in their order.
    pub fn reachable(self, addresses: &[String]) -> impl Iterator<Item = &String> {
        let first = addresses.first().is_some_and(|first| is_ipv6(first));
        addresses.iter().filter(move |address| match self {
            Families::All => true,
            Families::Ipv4 => !is_ipv6(address),
            Families::Ipv6 => is_ipv6(address),
            Families::First => first == is_ipv6(address),
        })
    }
}

/// Does the proxy's DNS answer with automatically allocated addresses?
///
/// # Errors
/// When an answer cannot be decoded.
pub fn answers_with_allocated(ctx: &Ctx<'_>) -> Result<bool, Failure> {
    Ok(ctx.proxy_metadata("DNS_CAPTURE").as_deref() == Some("true")
        && (ctx.flags(["PILOT_ENABLE_IP_AUTOALLOCATE"])?[0]
            || ctx.proxy_metadata("DNS_AUTO_ALLOCATE").as_deref() == Some("true")))
}

/// Is an address, or a network, of IPv6?
pub fn is_ipv6(address: &str) -> bool {
    address.contains(':')
}
