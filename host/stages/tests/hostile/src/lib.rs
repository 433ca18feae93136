//! A stage and a plugin that do what they must not.
//!
//! What they do is chosen by a word: [`behave`] knows them all. The stage takes the word as its function, the plugin as what
//! the setting named by its first argument says, so that a test makes it misbehave, and mend its ways, by a change of facts.
//! One component holds both.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use trysail_sdk::{Ctx, Failure, Item, Message, Outcome, Output, Part};

/// Hook points of the plugin.
pub const POINTS: [&str; 2] = ["clusters", "http-filters"];

/// What only an impure guest has: state from one call to the next.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// The stage: the function is the word.
///
/// # Errors
/// An unknown word.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    behave(ctx, function, args).unwrap_or_else(|| Err(Failure::UnknownFunction(function.to_owned())))
}

/// The plugin: asks the setting of its first argument for the word. Where that is no word it turns the fragment's letters into
/// capitals, at insertion points it inserts the setting. In a real mesh, whose insertion points have three arguments and whose
/// fragments are about services, it traps at the former and leaves the latter alone.
///
/// # Errors
/// What the word says.
pub fn apply(ctx: &Ctx<'_>, point: &str, args: &[String], items: &[(String, Vec<u8>)]) -> Result<Outcome, Failure> {
    let about = args.first().map_or("", String::as_str);
    assert!(args.len() != 3, "asked to, at {point}");
    if about.contains('/') {
        return Ok(Outcome::Unchanged);
    }
    let text = ctx.setting(about);
    let mut words = text.split(' ');
    let word = words.next().unwrap_or_default();
    let rest: Vec<String> = words.map(str::to_owned).collect();
    if let Some(result) = behave(ctx, word, if rest.is_empty() { args } else { &rest }) {
        return result.map(Outcome::Replaced);
    }
    let mut output = Output::empty();
    for (key, message) in items {
        output.item(Item::new(key, Message { parts: vec![Part::Bytes(message.to_ascii_uppercase())] }));
    }
    if items.is_empty() {
        output.item(Item::new(about, Message::default().text(1, &text)));
    }
    Ok(Outcome::Replaced(output))
}

/// One way to misbehave. `None` for words that are none.
pub fn behave(ctx: &Ctx<'_>, word: &str, args: &[String]) -> Option<Result<Output, Failure>> {
    let arg = args.first().map_or("", String::as_str);
    let mut output = Output::empty();
    let mut parts = |parts: Vec<Part>| output.item(Item::new("garbage", Message { parts }));
    match word {
        "trap" => panic!("asked to, about {arg}"),
        "trap-for" => {
            // For some proxies only.
            assert_ne!(ctx.proxy("TAG").as_deref(), Some(arg), "asked to, for {arg}");
            output.item(Item::new("well", Message::default().text(1, "well")));
        }
        "loop" => loop {
            black_box(());
        },
        "stack" => {
            #[allow(unconditional_recursion, reason = "that is what it is for")]
            fn deeper(n: u64) -> u64 {
                black_box(deeper(black_box(n + 1)) + 1)
            }
            let depth = deeper(0);
            output.item(Item::new("never", Message::default().text(1, &depth.to_string())));
        }
        "memory" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(black_box(vec![1; 1 << 20]));
            }
        }
        "giant" => parts(vec![Part::Bytes(vec![b' '; 8 << 20])]),
        "unclosed" => parts(vec![Part::Open(1)]),
        "unopened" => parts(vec![Part::Close]),
        "field-zero" => parts(vec![Part::Open(0), Part::Close]),
        "field-range" => parts(vec![Part::Open(1 << 29), Part::Close]),
        "queries" => {
            for i in 0u64.. {
                black_box(ctx.setting(&i.to_string()));
            }
        }
        "long-questions" => {
            let long = "?".repeat(1 << 20);
            for i in 0u64.. {
                black_box(ctx.setting(&format!("{long}{i}")));
            }
        }
        "counter" => {
            let n = CALLS.fetch_add(1, Ordering::Relaxed);
            output.item(Item::new("counter", Message::default().text(1, &n.to_string())));
        }
        "pointer" => {
            // So much of it that the next call cannot have it at the same place.
            let leaked = Vec::leak(black_box(vec![1u8; 1 << 16]));
            output.item(Item::new("pointer", Message::default().text(1, &format!("{:p}", leaked.as_ptr()))));
        }
        "recursion" => {
            let deeper = arg.parse().unwrap_or(0u64) + 1;
            let found = ctx.derived_exists("hostile", "recursion", &[&deeper.to_string()]);
            output.item(Item::new("never", Message::default().text(1, &found.to_string())));
        }
        "work" => {
            // Long, but not endless: enough for a deadline of a few milliseconds on any machine.
            let rounds: u64 = arg.parse().unwrap_or_default();
            let sum = (0..rounds).fold(1u64, |sum, i| black_box(sum.wrapping_mul(31).wrapping_add(i)));
            black_box(sum);
            output.item(Item::new("work", Message::default().text(1, "done")));
        }
        "fail" => return Some(Err(Failure::BadArguments("asked to".to_owned()))),
        _ => return None,
    }
    Some(Ok(output))
}

#[cfg(target_family = "wasm")]
mod stage {
    trysail_sdk::export_stage!(super::translate);
}

#[cfg(target_family = "wasm")]
mod plugin {
    trysail_sdk::export_plugin!(super::POINTS, super::apply);
}
