//! Addresses that istiod itself gives to ServiceEntries' hosts when no controller writes them into their status
//! (`PILOT_ENABLE_IP_AUTOALLOCATE` off): slots of 240.240.0.0/16 by a hash of `namespace/host`.
//!
//! All replicas must come to the same addresses, so the hash and the way out of collisions are fixed.

use std::collections::BTreeMap;

/// Number of slots.
const SLOTS: u32 = 256 * 254;
/// For the second hash, by which a taken slot is left.
const STEP: u32 = 65011;

/// The addresses (IPv4, IPv6) of each of these `namespace/host`. One that is given several times, because several entries
/// have it, takes as many slots and has the address of the lowest.
pub fn allocate<'a>(hosts: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, [String; 2]> {
    let mut hosts: Vec<&str> = hosts.into_iter().collect();
    hosts.sort_unstable();
    let mut slots: BTreeMap<u32, &str> = BTreeMap::new();
    for host in hosts.into_iter().take(SLOTS as usize) {
        let hash = fnv1a(host.as_bytes());
        let step = STEP - hash % STEP;
        let first = hash % SLOTS;
        let others = (1u32..).map(|i| hash.wrapping_add(i.wrapping_mul(step)) % (SLOTS - 1));
        let free = std::iter::once(first).chain(others).take(4 * SLOTS as usize).find(|slot| !slots.contains_key(slot));
        slots.extend(free.map(|slot| (slot, host)));
    }
    let mut shift = 0;
    let mut found = BTreeMap::new();
    for (slot, host) in slots {
        let mut number = slot + 1 + shift;
        // Addresses ending in 0 or 255 are left out, and all later ones move up.
        if number % 255 == 0 {
            number += 1;
            shift += 1;
        }
        let (high, low) = (number / 255, number % 255);
        let v6 = if high == 0 { format!("2001:2::f0f0:{low:x}") } else { format!("2001:2::f0f0:{high:x}{low:x}") };
        found.entry(host.to_owned()).or_insert_with(|| [format!("240.240.{high}.{low}"), v6]);
    }
    found
}

/// 32-bit FNV-1a.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn slots_are_those_that_all_replicas_take() {
        let one = |hosts: &[&str]| allocate(hosts.iter().copied())[hosts[0]][0].clone();
        assert_eq!(one(&["default/istio.io"]), "240.240.122.168");
        assert_eq!(one(&["default/istio.io", "default/istio.io"]), "240.240.91.120");
    }

    #[test]
    fn addresses_are_distinct_and_stable() {
        let hosts: Vec<String> = (0..2000).map(|i| format!("n/h{i}.com")).collect();
        let found = allocate(hosts.iter().map(String::as_str));
        let distinct: BTreeSet<&String> = found.values().map(|[v4, _]| v4).collect();
        assert_eq!(distinct.len(), 2000);
        assert!(distinct.iter().all(|v4| !v4.ends_with(".255") && !v4.ends_with(".0")));
        let again = allocate(hosts.iter().rev().map(String::as_str));
        assert_eq!(found, again);
    }
}
