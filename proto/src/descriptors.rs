//! Descriptors of every known file, also of those that have no Rust type here: users may name any Envoy filter in an
//! EnvoyFilter. For the host only; it is what JSON and validation work from.

use std::sync::OnceLock;

use prost_reflect::DescriptorPool;

/// The encoded `FileDescriptorSet` of Envoy's files and ours.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The pool of all descriptors. The first call builds it (about 40 ms, 17 MB); later ones are free.
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("protoc wrote this set in the same build"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_types_outside_the_closure() {
        for name in [
            "envoy.extensions.filters.http.gcp_authn.v3.GcpAuthnFilterConfig",
            "istio.networking.v1alpha3.VirtualService",
            "trysail.facts.v1.Service",
        ] {
            assert!(pool().get_message_by_name(name).is_some(), "{name}");
        }
    }
}
