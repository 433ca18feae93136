//! The translation engine: it runs stages and plugins, remembers what they did by what they read, puts their outputs
//! together, and says how every byte came about.
//!
//! It knows nothing of Istio's kinds and rules (stages do), of where facts come from, or of streams.
//!
//! ```text
//!  snapshot ──queries──▶ guest (component or native) ──output──▶ leaf ──assembly──▶ node ──▶ view
//!     │                      ▲ every question and answer is recorded in a trace          │
//!     └─ change: affected queries ─▶ answers that moved ─▶ calls that read them ─▶ dirty ┘
//! ```
//!
//! **Invariant:** what a call returns depends on its arguments and its recorded reads alone. The sandbox enforces it; the
//! purity audit checks it.

mod aside;
pub mod calls;
mod chain;
pub mod circuit;
pub mod collect;
pub mod component;
pub mod effects;
pub mod engine;
mod eval;
pub mod explain;
pub mod fault;
pub mod gate;
pub mod guest;
pub mod memo;
pub mod metrics;
pub mod node;
mod proxies;
pub mod queries;
pub mod replay;
mod run;
pub mod terms;
pub mod trace;
pub mod views;

pub use circuit::{Budget, Conduct, Standing};
pub use engine::{Advance, Config, Engine, Hooked, OnRun, OutputDecl, Root};
pub use fault::{FailurePolicy, Fault, FaultKind};
pub use gate::{HOLES, Need, Verdict};
pub use guest::{Guest, Limits, Native, NativeCode};
pub use run::Asked;
pub use terms::{Effect, Place, Settled, Terms};
pub use views::EngineTranslator;

/// Stack of threads that evaluate: calls nest, and each level may use its guest's whole stack.
pub const STACK: usize = 64 << 20;
