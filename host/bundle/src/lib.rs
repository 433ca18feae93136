//! The built-in stages as components, embedded.
//!
//! The build script compiles the guests for `wasm32-unknown-unknown` with a nested cargo, which has a target folder of its own
//! beside the profiles', makes components of them, and leaves copies at `target/PROFILE/components/NAME.component.wasm`.

/// A built-in stage.
pub struct Builtin {
    /// Name of the stage.
    pub name: &'static str,
    /// The component.
    pub component: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/builtins.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that a component may have. What grows past it is looked at, and the budget raised with a reason.
    const BUDGETS: [(&str, usize); 8] = [
        ("clusters", 1_500_000),
        ("dns", 500_000),
        ("endpoints", 900_000),
        ("envoyfilter", 700_000),
        ("listeners", 1_800_000),
        ("routes", 1_500_000),
        ("scope", 900_000),
        ("security", 500_000),
    ];

    #[test]
    fn every_stage_keeps_its_size_budget() {
        assert_eq!(BUILTINS.len(), BUDGETS.len(), "a stage without a budget, or the reverse");
        for builtin in BUILTINS {
            let (_, budget) = BUDGETS.iter().find(|(name, _)| *name == builtin.name).expect("every stage has a budget");
            let size = builtin.component.len();
            assert!(size <= *budget, "{} has {size} bytes, its budget is {budget}", builtin.name);
        }
    }
}
