//! Trysail's binary as a library, so that tests and benches use the very same wiring: folder or cluster to facts, facts to
//! stages, stages to streams.

pub mod balance;
pub mod ca_secret;
pub mod controlz;
pub mod duties;
pub mod env;
pub mod explain;
mod external;
pub mod health;
mod http;
pub mod images;
pub mod logging;
pub mod metrics;
pub mod nowhere;
pub mod omission;
pub mod pages;
pub mod pipeline;
pub mod plugin;
pub mod render;
mod reviews;
pub mod security;
pub mod server;
pub mod source;
pub mod statuses;
pub mod terminal;
mod trust;
pub mod version;

/// The system's allocator took an eighth of the time of a translation, and keeps what threads freed to itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
