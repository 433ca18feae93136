//! Chance, and the few names that everything is chosen from, so that objects meet.

use serde_json::Value;

pub const NAMESPACES: [&str; 3] = ["istio-system", "n1", "n2"];
pub const NAMES: [&str; 3] = ["a", "b", "c"];
pub const NODES: [&str; 2] = ["node-1", "node-2"];
pub const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1"];
pub const VIRTUAL: [&str; 4] = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.1"];
pub const HOSTS: [&str; 7] = [
    "a.n1.svc.cluster.local",
    "b.n1.svc.cluster.local",
    "a.n2.svc.cluster.local",
    "x.example.com",
    "y.example.com",
    "*.example.com",
    "*",
];
pub const EXPORTS: [&[&str]; 6] = [&[], &["*"], &["."], &["n1", "n2"], &["~"], &[]];

/// A small generator of numbers (splitmix64): the same on every machine.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("it is below a usize")
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    pub fn of<const N: usize>(&mut self, list: [Value; N]) -> Value {
        list[self.below(N)].clone()
    }

    /// The value once in so many times, else null.
    pub fn maybe(&mut self, n: usize, value: Value) -> Value {
        if self.one_in(n) { value } else { Value::Null }
    }
}

/// A document without its fields that are null, as an API server would have it.
pub fn pruned(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, pruned(v))).collect(),
        Value::Array(list) => list.into_iter().map(pruned).collect(),
        other => other,
    }
}
