//! Endpoints of other networks are reached through the gateways of those networks (split horizon EDS).
//!
//! Only mutual TLS gets through, since gateways route by the SNI that carries the cluster's name; endpoints of other networks
//! without it are left out. Endpoints share their weight among the gateways, so weights are scaled to divide evenly.

use std::collections::BTreeMap;
use std::net::IpAddr;

use trysail_sdk::facts::NetworkGateway;
use trysail_sdk::{Ctx, Failure};

use crate::assembly::{Group, Member, TLS_ISTIO, Target};

/// The gateways that matter to one assignment.
pub struct Gateways {
    all: Vec<NetworkGateway>,
    /// Least common multiple of the numbers of gateways of each network and of each network and cluster.
    scale: u32,
}

impl Gateways {
    /// Asks for the gateways. EDS takes addresses only; inline endpoints (DNS clusters) may be names too.
    pub fn ask(ctx: &Ctx<'_>, names_too: bool) -> Result<Self, Failure> {
        let mut all = ctx.network_gateways()?;
        all.retain(|gateway| names_too || gateway.address.parse::<IpAddr>().is_ok());
        all.sort_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)));
        let mut counts: BTreeMap<(&str, Option<&str>), u32> = BTreeMap::new();
        for gateway in &all {
            *counts.entry((&gateway.network, None)).or_default() += 1;
            *counts.entry((&gateway.network, Some(&gateway.cluster_id))).or_default() += 1;
        }
        let scale = counts.values().fold(1, |scale, count| lcm(scale, *count));
        Ok(Gateways { all, scale })
    }

    /// Gateways to a network: those of the endpoint's cluster, else those of all its clusters. A sidecar uses the port
    /// for mutual TLS, so a gateway that only takes HBONE is none.
    fn of(&self, network: &str, cluster: &str) -> Vec<&NetworkGateway> {
        let of_network = || self.all.iter().filter(|gateway| gateway.network == network);
        let mut chosen: Vec<_> = of_network().filter(|gateway| gateway.cluster_id == cluster).collect();
        if chosen.is_empty() {
            chosen = of_network().collect();
        }
        chosen.retain(|gateway| gateway.port != 0);
        chosen
    }

    /// Replaces endpoints of other networks by gateways.
    pub fn apply<'g>(&'g self, ctx: &Ctx<'_>, groups: Vec<Group<'g>>) -> Vec<Group<'g>> {
        if self.all.is_empty() {
            return groups;
        }
        let own = ctx.proxy("network").unwrap_or_default();
        let mut families: Option<String> = None;
        let mut split = Vec::with_capacity(groups.len());
        for group in groups {
            let mut direct = Vec::with_capacity(group.members.len());
            // Ordered by address and port, and unique by place in the list.
            let mut through: BTreeMap<usize, u32> = BTreeMap::new();
            for mut member in group.members {
                let Target::Workload(endpoint) = member.target else { continue };
                member.weight = scaled(member.weight, self.scale);
                let gateways = self.of(&endpoint.network, &endpoint.cluster_id);
                let near = own.is_empty() || endpoint.network.is_empty() || own == endpoint.network;
                // A proxy that does not know its network goes through gateways where there are some.
                let forced = own.is_empty() && !endpoint.network.is_empty() && !gateways.is_empty();
                if !forced && (near || gateways.is_empty()) {
                    if endpoint.addresses.first().is_some_and(|address| !address.is_empty()) {
                        direct.push(member);
                    }
                    continue;
                }
                let families = families.get_or_insert_with(|| ctx.proxy("ip-families").unwrap_or_default());
                let reachable: Vec<_> =
                    gateways.into_iter().filter(|gateway| reaches(families, &gateway.address)).collect();
                let mtls = member.mtls && endpoint.tls_mode == TLS_ISTIO;
                if reachable.is_empty() || !mtls {
                    continue;
                }
                let share = member.weight / u32::try_from(reachable.len()).unwrap_or(u32::MAX);
                for gateway in reachable {
                    let place =
                        self.all.iter().position(|other| std::ptr::eq(other, gateway)).expect("it is from the list");
                    *through.entry(place).or_default() += share;
                }
            }
            direct.extend(through.into_iter().map(|(place, weight)| Member {
                target: Target::Gateway(&self.all[place]),
                weight: weight.max(1),
                health: None,
                mtls: true,
            }));
            let mut group = Group { members: direct, weight: None, ..group };
            group.weight = (!group.members.is_empty()).then(|| group.member_weight());
            split.push(group);
        }
        split
    }
}

/// Can a proxy with these address families reach the address? Unknown families reach everything.
fn reaches(families: &str, address: &str) -> bool {
    match (families, address.parse::<IpAddr>().map(|ip| ip.to_canonical())) {
        ("ipv4", Ok(ip)) => ip.is_ipv4(),
        ("ipv6", Ok(ip)) => ip.is_ipv6(),
        ("ipv4" | "ipv6", Err(_)) => false,
        _ => true,
    }
}

fn scaled(weight: u32, scale: u32) -> u32 {
    if weight < u32::MAX / scale { weight * scale } else { u32::MAX }
}

fn lcm(a: u32, b: u32) -> u32 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        assert!(reaches("ipv4", "10.0.0.1") && !reaches("ipv4", "fd00::1") && reaches("ipv6", "fd00::1"));
        assert!(reaches("dual", "10.0.0.1") && !reaches("ipv4", "gateway.example"));
        assert!(reaches("ipv4", "::ffff:10.0.0.1"));
    }

    #[test]
    fn weights() {
        assert_eq!((lcm(4, 6), lcm(1, 5)), (12, 5));
        assert_eq!((scaled(2, 3), scaled(u32::MAX, 2)), (6, u32::MAX));
    }
}
