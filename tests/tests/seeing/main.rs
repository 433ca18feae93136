//! Seeing into the control plane: debug pages over HTTP and over streams, metrics, logs. Where istiod's recordings are at hand
//! (`live/` of the corpus), shapes, codes and words are compared with them.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

mod logs;
mod mesh;
mod metrics;
mod pages;
mod streams;
#[path = "../support/secure.rs"]
mod support;
