//! The discovery server: aggregated discovery service over gRPC, in the delta and in the state-of-the-world form.
//!
//! It holds the streams: what each proxy watches, what it was sent and what it acknowledged; the debouncer; metrics.
//! It deliberately does not know where configuration comes from or what a resource means: everything is asked of a
//! [`Translator`](trysail_model::Translator). The one thing it knows of Envoy is which types wait for which others.
//!
//! ```text
//!  source events --> Debouncer --> (app commits a snapshot) --> Server::notify
//!                                                                  | watch channel: only the newest push
//!  Envoy --request--> connection (one task) --> stream (rules) ----+
//!                        |    ^                    | job: all watched types at one snapshot
//!                        |    +---- replies -------+--> pool (own threads): Translator::views, differences
//!                        +--response, only when the transport took the one before--> codec (ropes -> frame)
//! ```
//!
//! **Invariant:** a connection holds the views it was last served, at most one set of replies that are not yet
//! encoded, one response in the channel, and what the transport has encoded. While a client does not read, nothing is
//! translated for it, so that when it reads again it gets the rest of one old set and then the newest state. Whatever
//! number of pushes passed meanwhile costs nothing.
//!
//! **Invariant:** the resources of a set come from one snapshot and go out in
//! [`PUSH_ORDER`](trysail_model::ids::type_urls::PUSH_ORDER).
//!
//! Where the rules differ from istiod's, the place says so with the word "istiod" and why.

mod admission;
mod age;
mod apart;
mod body;
mod codec;
pub mod config;
mod connection;
pub mod debounce;
pub mod debug;
mod diff;
mod job;
mod kind;
pub mod metrics;
mod nack;
mod names;
mod pool;
mod reflection;
pub mod request;
mod server;
mod service;
pub mod status;
mod stream;
mod watch;

pub use config::{Config, PushInfo, PushReport};
pub use debounce::Debouncer;
pub use debug::Debug;
pub use metrics::Metrics;
pub use request::{Request, first_message};
pub use server::Server;
pub use service::AdsService;
