//! The server as a client sees it: real gRPC over a local socket, against a translation that the tests edit.
//!
//! That nothing is sent is shown without waiting: a request that is surely answered is sent behind, and its answer has
//! to be the next thing that comes.

mod client;
mod delta;
mod fake;
mod garbage;
mod load;
mod nack;
mod operations;
mod push;
mod sotw;
