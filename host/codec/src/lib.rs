//! Protobuf messages by reflection: to and from JSON, and judged by the rules that Envoy's files state.
//!
//! It knows how messages are spelled and what makes one invalid, for every type in the descriptor pool.
//! It deliberately does not know what any message means, nor where it came from.
//!
//! ```text
//! a user's document ──> json::from_json ──> bytes ──> json::to_json ──> dumps, golden files
//!                                             └─────> gate::validate ──> violations
//! ```
//!
//! **Invariant:** equal messages give equal bytes ([`encode`]), because versions of resources are digests of them.
//!
//! **Invariant:** nothing here panics or overflows the stack on hostile bytes or JSON; nesting is bounded.

pub mod encode;
pub mod gate;
pub mod json;
mod path;

use prost_reflect::MessageDescriptor;
use trysail_proto::{any, descriptors};

/// Nesting beyond which an `Any` is not opened. prost decodes at most 100 levels of one message, but each `Any` starts
/// anew, so without this a small message could nest deeper than the stack.
const MAX_DEPTH: usize = 100;

/// Finds a message type by type URL or by full name.
fn find_message(type_url: &str) -> Option<MessageDescriptor> {
    descriptors::pool().get_message_by_name(any::full_name(type_url))
}
