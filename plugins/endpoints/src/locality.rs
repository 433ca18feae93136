//! Priorities and weights of endpoints by where the proxy is.
//!
//! The proxy's locality and labels are asked only when something here depends on them, since proxies that differ in an answer
//! do not share the assignment.

use std::collections::BTreeMap;

use trysail_policy::Balancing;
use trysail_policy::locality::{LABEL_CLUSTER, LABEL_NETWORK, zone_routing};
use trysail_sdk::Ctx;
use trysail_sdk::facts::Locality;
use trysail_sdk::proto::istio::networking::v1alpha3::locality_load_balancer_setting::Distribute;

use crate::assembly::{Group, Member, Target};
use crate::select::label_of;

/// When a balancing is applied.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// The cluster has outlier detection, without which hosts never fail over.
    pub outlier_detection: bool,
    /// Priorities by labels are applied. They are not for the subsets of DNS clusters.
    pub by_labels: bool,
}

/// Applies what is preferred.
pub fn apply<'e>(
    ctx: &Ctx<'_>,
    balancing: Balancing<'_>,
    when: Circumstances,
    groups: Vec<Group<'e>>,
) -> Vec<Group<'e>> {
    match balancing {
        Balancing::Off => groups,
        Balancing::Preferred(labels) => by_labels(ctx, labels, when, groups),
        Balancing::ZoneAware(setting) => {
            // Waypoints have no cluster of their own kind to compare zones with.
            if !zone_routing(setting) || ctx.proxy("type").as_deref() == Some("waypoint") {
                return groups;
            }
            let mut groups = by_labels(ctx, &setting.failover_priority, when, groups);
            let own = own_locality(ctx);
            let to = setting.failover.iter().find(|failover| failover.from == own.region).map(|failover| &failover.to);
            rank(&mut groups, 3, |there| match there.region == own.region {
                true => 0,
                false if to == Some(&there.region) => 1,
                false => 2,
            });
            groups
        }
        Balancing::Locality(setting) => {
            if !setting.distribute.is_empty() {
                return distribute(ctx, &setting.distribute, groups);
            }
            if !when.outlier_detection {
                return groups;
            }
            let mut groups = by_labels(ctx, &setting.failover_priority, when, groups);
            if !setting.failover_priority.is_empty() && setting.failover.is_empty() {
                return groups;
            }
            let own = own_locality(ctx);
            let to = setting.failover.iter().find(|failover| failover.from == own.region).map(|failover| &failover.to);
            rank(&mut groups, 5, |there| {
                if there.region != own.region {
                    // Regions that are not the one to fail over to come after it.
                    return if to.is_some_and(|to| *to != there.region) { 4 } else { 3 };
                }
                if there.zone != own.zone { 2 } else { u32::from(there.sub_zone != own.sub_zone) }
            });
            groups
        }
    }
}

fn own_locality(ctx: &Ctx<'_>) -> Locality {
    parse(&ctx.proxy("locality").unwrap_or_default())
}

fn parse(text: &str) -> Locality {
    let mut parts = text.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}

/// Ranks groups within the priorities they have, then numbers priorities from 0 without gaps, as Envoy wants them.
fn rank(groups: &mut [Group<'_>], ranks: u32, of: impl Fn(&Locality) -> u32) {
    for group in groups.iter_mut() {
        group.priority = group.priority * ranks + of(&group.locality);
    }
    close_gaps(groups);
}

fn close_gaps(groups: &mut [Group<'_>]) {
    let mut used: Vec<u32> = groups.iter().map(|group| group.priority).collect();
    used.sort_unstable();
    used.dedup();
    for group in groups {
        group.priority = used.binary_search(&group.priority).map_or(0, |i| u32::try_from(i).unwrap_or(u32::MAX));
    }
}

/// Splits each locality by how many labels its endpoints share with the proxy: the first label that differs decides. A label
/// may come with the value to prefer (`key=value`), else it is the proxy's.
fn by_labels<'e, S: AsRef<str>>(
    ctx: &Ctx<'_>,
    labels: &[S],
    when: Circumstances,
    groups: Vec<Group<'e>>,
) -> Vec<Group<'e>> {
    if labels.is_empty() || groups.is_empty() || !when.by_labels {
        return groups;
    }
    let wanted: Vec<(&str, String)> = labels.iter().map(|label| preferred(ctx, label.as_ref())).collect();
    let mut split = Vec::with_capacity(groups.len());
    for group in groups {
        let mut parts: BTreeMap<usize, Vec<Member<'e>>> = BTreeMap::new();
        for member in group.members {
            parts.entry(distance(&wanted, &member)).or_default().push(member);
        }
        for (distance, members) in parts {
            let priority = u32::try_from(distance).unwrap_or(u32::MAX);
            let mut part = Group { locality: group.locality.clone(), members, weight: None, priority };
            part.weight = Some(part.member_weight());
            split.push(part);
        }
    }
    close_gaps(&mut split);
    split
}

fn preferred<'l>(ctx: &Ctx<'_>, label: &'l str) -> (&'l str, String) {
    let mut parts = label.split('=');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(key), Some(value), None) => (key, value.to_owned()),
        (key, ..) => {
            let key = key.unwrap_or_default();
            (key, ctx.proxy(&format!("label:{key}")).unwrap_or_default())
        }
    }
}

/// How far an endpoint is: 0 when all labels agree. Endpoints of another network come after all others, in their own order, if
/// the network is the first label.
fn distance(wanted: &[(&str, String)], member: &Member<'_>) -> usize {
    let count = wanted.len();
    let mut other_network = 0;
    for (i, (key, value)) in wanted.iter().enumerate() {
        if label_of_target(member.target, key) == value {
            continue;
        }
        if i == 0 && *key == LABEL_NETWORK {
            other_network = count;
            continue;
        }
        return count - i + other_network;
    }
    other_network
}

fn label_of_target<'e>(target: Target<'e>, key: &str) -> &'e str {
    match target {
        Target::Workload(endpoint) => label_of(endpoint, key).unwrap_or_default(),
        Target::Gateway(gateway) => match key {
            LABEL_NETWORK => &gateway.network,
            LABEL_CLUSTER => &gateway.cluster_id,
            _ => "",
        },
    }
}

/// Shares traffic among localities as the first matching rule says. Localities that it does not name get nothing.
fn distribute<'e>(ctx: &Ctx<'_>, rules: &[Distribute], mut groups: Vec<Group<'e>>) -> Vec<Group<'e>> {
    let own = own_locality(ctx);
    let Some(rule) = rules.iter().find(|rule| covers(&rule.from, &own)) else { return groups };
    let mut left: Vec<usize> = (0..groups.len()).collect();
    for (to, share) in &rule.to {
        let (named, rest): (Vec<usize>, Vec<usize>) = left.iter().partition(|i| covers(to, &groups[**i].locality));
        left = rest;
        let weights: Vec<u32> = named.iter().map(|i| groups[*i].weight.unwrap_or(1)).collect();
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        for (i, weight) in named.into_iter().zip(weights) {
            // A pattern may name several localities: they divide its share by their own weights, rounded up.
            let part = (u64::from(weight) * u64::from(*share)).div_ceil(total.max(1));
            if part > 0 {
                groups[i].weight = Some(u32::try_from(part).unwrap_or(u32::MAX));
            }
        }
    }
    for i in left {
        groups[i].members.clear();
    }
    groups
}

/// Is a place within `region/zone/subzone`? A star, or a part that is left out, covers all.
fn covers(rule: &str, place: &Locality) -> bool {
    let rule = parse(rule);
    (rule.region == "*" || rule.region == place.region)
        && (rule.zone.is_empty() || rule.zone == "*" || rule.zone == place.zone)
        && (rule.sub_zone.is_empty() || rule.sub_zone == "*" || rule.sub_zone == place.sub_zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(region: &str, zone: &str, priority: u32) -> Group<'static> {
        let locality = Locality { region: region.into(), zone: zone.into(), sub_zone: String::new() };
        Group { locality, members: Vec::new(), weight: Some(1), priority }
    }

    #[test]
    fn patterns() {
        let place = parse("eu/a/1");
        assert!(covers("*", &place) && covers("eu", &place) && covers("eu/*", &place) && covers("eu/a/1", &place));
        assert!(!covers("eu/b", &place) && !covers("us/*", &place));
    }

    #[test]
    fn priorities_have_no_gaps_and_keep_their_order() {
        let mut groups = [group("us", "", 1), group("eu", "", 1), group("us", "", 0)];
        rank(&mut groups, 5, |there| if there.region == "eu" { 0 } else { 3 });
        assert_eq!(groups.map(|g| g.priority), [2, 1, 0]);
    }
}
