//! Components of plugins, and versions of them.
#![allow(dead_code, reason = "not every suite needs all of it")]

use std::path::Path;

use trysail_tests::workspace;

/// The component of a guest crate.
pub fn component(package: &str) -> Vec<u8> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let modules = trysail_guests::compile(&workspace(), &trysail_guests::folder(target), &[package]).unwrap();
    trysail_guests::encode(&trysail_guests::module(&modules, package)).unwrap()
}

/// Another version of a component that does the same: a custom section more, which nobody reads.
pub fn version(component: &[u8], name: &str) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes.extend([0, u8::try_from(name.len() + 1).unwrap(), u8::try_from(name.len()).unwrap()]);
    bytes.extend(name.as_bytes());
    bytes
}
