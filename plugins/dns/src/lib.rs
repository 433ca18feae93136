//! Name tables (NDS) for the agent's DNS proxy.

use trysail_sdk::{Ctx, Failure, Output};

/// The stage's function.
///
/// # Errors
/// [`Failure::UnknownFunction`] for anything but `all`.
pub fn translate(_ctx: &Ctx<'_>, function: &str, _args: &[String]) -> Result<Output, Failure> {
    Err(Failure::UnknownFunction(function.to_owned()))
}
