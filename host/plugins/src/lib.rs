//! Plugins on the host's side: at which points of the output they stand, what they see there, what becomes of what they want, and
//! which of them there are.
//!
//! ```text
//!  documents, folder ──▶ catalogue ──▶ the engine's table of hooks, each with its terms
//!                                                            │
//!  fragment (protobuf) ──▶ hook: lens ──▶ JSON ──▶ plugin ──▶ edits ──▶ fragment
//!                                                     difference ──▶ rights, invariants, shadow, conflicts, status
//! ```
//!
//! It knows Envoy's messages by their names and fields, and deliberately nothing of calls, memos, streams, or Istio's kinds.
//!
//! **Invariant:** rights and security invariants are judged on the difference that a plugin made, never on what it says.

pub mod catalogue;
pub mod configuration;
pub mod difference;
pub mod document;
pub mod edit;
pub mod hooks;
pub mod invariants;
pub mod names;
pub mod path;
pub mod rights;
pub mod terms;
