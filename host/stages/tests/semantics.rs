//! The engine's points, one by one, over the toy world.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use support::*;
use trysail_model::Watched;
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output};
use trysail_stages::guest::Guest;
use trysail_stages::metrics::Reading;
use trysail_stages::{Advance, Engine, Native, NativeCode, Need, Verdict};

fn world() -> World {
    World::default().list("plan", &["a", "b", "c"]).text("a", "one").text("b", "for x two").text("c", "see a")
}

fn go(engine: &Engine, old: &mut World, new: World) -> Advance {
    let affected = new.affected(old);
    *old = new;
    engine.advance(Arc::new(old.clone()), &affected)
}

/// Work done by `act`.
fn work(engine: &Engine, act: impl FnOnce()) -> Reading {
    let before = engine.counters().read();
    act();
    engine.counters().read() - before
}

#[test]
fn a_hit_is_what_a_fresh_run_gives() {
    let engine = engine(&world());
    let p = proxy("p", "x", "1");
    let first = resources(&engine, &p);
    let hit = work(&engine, || assert_eq!(resources(&engine, &p), first));
    assert_eq!(hit, Reading { hits: 1, ..Reading::default() }, "nothing walks the children to learn that all is well");
    assert_eq!(resources(&support::engine(&world()), &p), first);
}

#[test]
fn proxies_whose_answers_agree_share_one_allocation() {
    let engine = engine(&world());
    let serve = |p| engine.resources(&p, &ALL.into(), &Watched::Wildcard).node.unwrap();
    let (a, b) = (serve(proxy("p", "x", "1")), serve(proxy("q", "x", "1")));
    assert!(Arc::ptr_eq(&a, &b), "two proxies with the same answers");
    let c = serve(proxy("r", "x", "2"));
    assert!(!Arc::ptr_eq(&a, &c), "the tag is the workload's own");
    assert!(Arc::ptr_eq(&a.children[0], &c.children[0]), "what is not its own is shared");
    // Two namespaces that are told the same share: the edge is the answer, not the attribute.
    let (y, z) = (serve(proxy("s", "y", "1")), serve(proxy("t", "z", "1")));
    assert!(Arc::ptr_eq(&y, &z));
    let runs = work(&engine, || drop(serve(proxy("u", "w", "1"))));
    assert_eq!(runs.runs, 0);
}

#[test]
fn items_of_another_call_are_told_apart() {
    let mut now = world().text("d", "each a").text("e", "each z").text("z", "none").list("plan", &["d", "e"]);
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    assert_eq!(text(&engine, &p, "d").as_deref(), Some("a:5 "));
    assert_eq!(text(&engine, &p, "e").as_deref(), Some(""));
    let new = now.clone().text("a", "longer");
    go(&engine, &mut now, new);
    assert_eq!(text(&engine, &p, "d").as_deref(), Some("a:8 "));
}

#[test]
fn only_what_read_a_change_is_run_again() {
    let mut now = World::default().list("plan", &[]);
    for i in 0..500 {
        let name = format!("n{i}");
        now.lists.get_mut("plan").unwrap().push(name.clone());
        now = now.text(&name, "text");
    }
    let engine = engine(&now);
    let proxies: Vec<_> = (0..20).map(|i| proxy(&format!("p{i}"), "x", &format!("{}", i % 2))).collect();
    for p in &proxies {
        resources(&engine, p);
    }
    let next = now.clone().text("n77", "changed");
    let advance = go(&engine, &mut now, next);
    assert_eq!(advance.moved, ["setting(n77)"]);
    assert_eq!(advance.dirty, 3, "the piece, its hook point and the plan above");
    let done = work(&engine, || {
        for p in &proxies {
            assert_eq!(text(&engine, p, "n77").as_deref(), Some("changed"));
        }
    });
    // One call is run; two distinct plans (two tags) look for their leaf and are put together again.
    assert_eq!((done.runs, done.walks, done.assembled), (1, 3, 3));
}

#[test]
fn a_change_that_nobody_read_moves_nothing() {
    let mut now = world();
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    resources(&engine, &p);
    let next = now.clone().text("unread", "1");
    assert_eq!(go(&engine, &mut now, next).dirty, 0);
    assert_eq!(work(&engine, || drop(resources(&engine, &p))), Reading { hits: 1, ..Reading::default() });
}

#[test]
fn an_equal_output_stops_the_change() {
    let mut now = world().text("d", "have a").list("plan", &["a", "d"]);
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    let before = engine.resources(&p, &ALL.into(), &Watched::Wildcard).node.unwrap();
    let next = now.clone().text("a", "other");
    go(&engine, &mut now, next);
    let done = work(&engine, || drop(resources(&engine, &p)));
    assert_eq!(done.runs, 1, "whether there is a piece did not change, so its asker is not run");
    let next = now.clone().text("a", "one");
    go(&engine, &mut now, next);
    let done = work(&engine, || drop(resources(&engine, &p)));
    assert_eq!(done.runs, 0, "an answer that was there before leads to the leaf it led to");
    let after = engine.resources(&p, &ALL.into(), &Watched::Wildcard).node.unwrap();
    assert_eq!(before.entries.fingerprint, after.entries.fingerprint);
}

#[test]
fn one_item_is_asked_for_without_the_others() {
    let mut now = world().text("t", "two one other").text("d", "pick t first").text("n", "pick t third");
    now = now.list("plan", &["d", "n"]);
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    assert_eq!(text(&engine, &p, "d").as_deref(), Some("one"));
    assert_eq!(text(&engine, &p, "n").as_deref(), Some("nothing"));
    let next = now.clone().text("t", "two one changed");
    go(&engine, &mut now, next);
    let done = work(&engine, || drop(resources(&engine, &p)));
    assert_eq!(done.runs, 1, "the pair is made again, and who asked for its first half is not run");
    let next = now.clone().text("t", "two moved changed");
    go(&engine, &mut now, next);
    let done = work(&engine, || drop(resources(&engine, &p)));
    assert_eq!(done.runs, 2, "that there is no third has not changed");
    assert_eq!(text(&engine, &p, "d").as_deref(), Some("moved"));
}

#[test]
fn findings_are_counted_once_by_their_code_while_they_hold() {
    let mut now = world().text("t", "found clash").text("u", "found clash").text("v", "found other");
    now = now.list("plan", &["t", "u", "v"]);
    let engine = engine(&now);
    let (p, q) = (proxy("p", "x", "1"), proxy("q", "y", "2"));
    resources(&engine, &p);
    resources(&engine, &q);
    let counted = |code: &str, n: usize| (code.to_owned(), n);
    assert_eq!(engine.findings(), [counted("clash", 2), counted("other", 1)].into());
    let next = now.clone().text("u", "well");
    go(&engine, &mut now, next);
    resources(&engine, &p);
    resources(&engine, &q);
    engine.collect(0);
    assert_eq!(engine.findings(), [counted("clash", 1), counted("other", 1)].into());
}

#[test]
fn there_is_none_is_an_answer() {
    let mut now = world().list("plan", &["missing"]);
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    assert_eq!(text(&engine, &p, "missing"), None);
    let next = now.clone().text("missing", "here");
    assert_eq!(go(&engine, &mut now, next).moved, ["setting(missing)"]);
    assert_eq!(text(&engine, &p, "missing").as_deref(), Some("here"));
}

#[test]
fn the_order_of_events_does_not_change_a_byte() {
    let p = proxy("p", "x", "1");
    let changes: [(&str, &str); 3] = [("a", "1"), ("b", "for x 2"), ("c", "see b")];
    let mut outcomes = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut now = world();
        let engine = engine(&now);
        for i in order {
            resources(&engine, &p);
            let next = now.clone().text(changes[i].0, changes[i].1);
            go(&engine, &mut now, next);
        }
        outcomes.push(resources(&engine, &p));
    }
    assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "{outcomes:?}");
}

#[test]
fn the_later_of_two_equal_claims_is_left_out() {
    let now = World::default().list("plan", &["a", "b"]).text("a", "claim door").text("b", "claim door");
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    let node = engine.resources(&p, &ALL.into(), &Watched::Wildcard).node.unwrap();
    assert!(node.entries.find("a").is_some() && node.entries.find("b").is_none());
    let said = engine.diagnostics(&p, &[node]);
    assert!(said.iter().any(|d| d.object == "b" && d.message.contains("door is taken by a")), "{said:?}");
}

#[test]
fn what_no_live_proxy_holds_may_go() {
    let mut now = world();
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    for i in 0..100 {
        let next = now.clone().text("a", &format!("{i}"));
        go(&engine, &mut now, next);
        resources(&engine, &p);
    }
    let want = resources(&engine, &p);
    let dropped = engine.collect(1);
    assert!(dropped.results > 150, "leaves of a and c, nodes: {dropped:?}");
    assert_eq!(work(&engine, || assert_eq!(resources(&engine, &p), want)).runs, 0, "what is in use stays");
}

#[test]
fn names_of_what_is_long_gone_go() {
    let mut now = world();
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    for i in 0..200 {
        let (name, text) = (format!("n{i}"), format!("{i}"));
        let next =
            World::default().list("plan", &["a", "c", &name]).text("a", "one").text("c", "see a").text(&name, &text);
        go(&engine, &mut now, next);
        resources(&engine, &p);
        if i % 50 == 49 {
            let dropped = engine.collect(0);
            assert!(dropped.calls >= 49 && dropped.queries >= 49, "{dropped:?}");
            let known = engine.live_queries().len();
            assert!(known < 10, "{known} queries for three names");
        }
    }
    let want = resources(&engine, &p);
    // What is left is all that is needed, and changes still find their readers.
    assert_eq!(work(&engine, || assert_eq!(resources(&engine, &p), want)).runs, 0);
    let next = now.clone().text("a", "two");
    go(&engine, &mut now, next);
    assert_eq!(work(&engine, || assert_ne!(resources(&engine, &p), want)).runs, 2, "a, and c which asks for it");
    assert_eq!(resources(&engine, &p), resources(&support::engine(&now), &p));
}

#[test]
fn calls_that_ask_for_each_other_are_a_fault_of_these_calls_only() {
    let now = World::default().list("plan", &["a", "c", "d"]).text("a", "see c").text("c", "see a").text("d", "fine");
    let engine = engine(&now);
    let served = engine.resources(&proxy("p", "x", "1"), &ALL.into(), &Watched::Wildcard);
    assert!(served.faults.iter().any(|fault| fault.kind.label() == "circle"), "{:?}", served.faults);
    let node = served.node.unwrap();
    assert!(node.entries.find("d").is_some() && node.entries.find("a").is_none());
}

#[test]
fn a_fault_holds_what_the_subscriber_was_last_served() {
    let mut now = world();
    let engine = engine(&now);
    let (p, late) = (proxy("p", "x", "1"), proxy("late", "x", "1"));
    resources(&engine, &p);
    let next = now.clone().text("a", "panic").text("b", "for x new");
    go(&engine, &mut now, next);
    assert_eq!(text(&engine, &p, "a").as_deref(), Some("one"), "held");
    assert_eq!(text(&engine, &p, "b").as_deref(), Some("new"), "other fragments never notice");
    assert_eq!(text(&engine, &late, "a"), None, "withheld: there is nothing to hold");
    let done = work(&engine, || drop(resources(&engine, &p)));
    assert_eq!(done.runs, 0, "the same inputs are not tried again");
    assert!(engine.counters().faults("toy", "trap") >= 1);
    let next = now.clone().text("a", "mended");
    go(&engine, &mut now, next);
    assert_eq!(text(&engine, &p, "a").as_deref(), Some("mended"));
    assert_eq!(text(&engine, &late, "a").as_deref(), Some("mended"));
}

#[test]
fn what_envoy_would_refuse_does_not_take_the_place_of_what_it_has() {
    let mut now = world();
    let refuse = |message: &str, bytes: &[u8]| {
        let bad = message == "toy.Piece" && bytes.ends_with(b"bad");
        Verdict { objections: if bad { vec!["it is bad".to_owned()] } else { Vec::new() }, ..Verdict::default() }
    };
    let config = trysail_stages::Config { gate: Some(Arc::new(refuse)), ..config() };
    let engine = Engine::new(config, [native()], Arc::new(now.clone()));
    let (p, late) = (proxy("p", "x", "1"), proxy("late", "x", "1"));
    resources(&engine, &p);
    let next = now.clone().text("a", "bad");
    go(&engine, &mut now, next);
    assert_eq!(text(&engine, &p, "a").as_deref(), Some("one"), "the last good stays");
    assert_eq!(text(&engine, &late, "a"), None, "without one it is left out");
    assert!(text(&engine, &late, "b").is_some());
    let node = engine.resources(&late, &ALL.into(), &Watched::Wildcard).node.unwrap();
    assert!(engine.diagnostics(&late, &[node]).iter().any(|d| d.object == "a" && d.message.contains("it is bad")));
    let next = now.clone().text("a", "good");
    go(&engine, &mut now, next);
    assert_eq!(text(&engine, &p, "a").as_deref(), Some("good"));
}

#[test]
fn what_is_left_out_takes_along_what_cannot_be_without_it() {
    let world = World::default().list("plan", &["a", "b"]).text("a", "within c").text("b", "fine").text("c", "bad");
    let refuse = |_: &str, bytes: &[u8]| {
        let objections = if bytes.ends_with(b"bad") { vec!["it is bad".to_owned()] } else { Vec::new() };
        Verdict { objections, ..Verdict::default() }
    };
    for (need, there) in [(Need::Nothing, vec!["a", "b"]), (Need::One, vec!["b"]), (Need::Each, vec!["b"])] {
        let mut config = trysail_stages::Config { gate: Some(Arc::new(refuse)), ..config() };
        config.outputs.iter_mut().for_each(|decl| decl.need = need);
        let engine = Engine::new(config, [native()], Arc::new(world.clone()));
        let (mut now, p) = (world.clone(), proxy("p", "x", "1"));
        assert_eq!(names(&engine, &p), there, "{need:?}");
        let next = now.clone().text("c", "good");
        go(&engine, &mut now, next);
        assert_eq!(names(&engine, &p), ["a", "b"], "{need:?}: once it is mended");
        let next = now.clone().text("c", "bad");
        go(&engine, &mut now, next);
        assert_eq!(names(&engine, &p), ["a", "b"], "{need:?}: the last good stays");
    }
}

/// A piece that waits for `named:x`, and one that waits for nothing.
fn waiting() -> World {
    World::default().list("plan", &["a", "b"]).text("a", "wait named:x").text("b", "fine").text("x", "here")
}

fn names(engine: &Arc<Engine>, p: &trysail_model::Proxy) -> Vec<String> {
    resources(engine, p).into_iter().map(|(name, _)| name).filter(|name| name != "own").collect()
}

#[test]
fn what_waits_for_nothing_that_is_made_is_held_back() {
    let mut now = waiting();
    let engine = engine(&now);
    let (p, late) = (proxy("p", "x", "1"), proxy("late", "x", "1"));
    assert_eq!(names(&engine, &p), ["a", "b"]);
    let hit = work(&engine, || drop(resources(&engine, &p)));
    assert_eq!(hit, Reading { hits: 2, ..Reading::default() }, "the list, and the call of the names that it waits for");
    let next = now.clone().text("x", "none").text("b", "moved");
    go(&engine, &mut now, next);
    assert_eq!(names(&engine, &p), ["a", "b"], "the last good stays");
    assert_eq!(text(&engine, &p, "b").as_deref(), Some("moved"), "and nothing else stands still");
    assert_eq!(names(&engine, &late), ["b"], "without one it is left out");
    let node = |p: &trysail_model::Proxy| engine.resources(p, &ALL.into(), &Watched::Wildcard).node.unwrap();
    assert_eq!(node(&late).entries.view().id, node(&late).entries.view().id, "nothing looks new at the next push");
    let twin = proxy("twin", "x", "1");
    assert!(Arc::ptr_eq(&node(&late), &node(&late)) && names(&engine, &twin) == ["b"]);
    let said = engine.diagnostics(&late, &[node(&late)]);
    assert!(said.iter().any(|d| d.object == "a" && d.message.contains("named:x")), "{said:?}");
    let next = now.clone().text("x", "back");
    go(&engine, &mut now, next);
    assert_eq!(
        (names(&engine, &late), names(&engine, &p)),
        (vec!["a".into(), "b".into()], vec!["a".into(), "b".into()])
    );
    assert_eq!(engine.diagnostics(&late, &[node(&late)]), []);
}

#[test]
fn what_is_in_a_hole_waits_too() {
    let now = waiting().text("a", "within c").text("c", "wait named:y").text("y", "none");
    let engine = engine(&now);
    assert_eq!(names(&engine, &proxy("p", "x", "1")), ["b"], "what is in a hole makes the whole wait");
    let now = waiting().text("a", "wait other:x");
    assert_eq!(names(&support::engine(&now), &proxy("p", "x", "1")), ["b"], "a type that nobody makes");
}

#[test]
fn a_fault_in_what_is_waited_for_does_not_block_the_rest() {
    let mut now = waiting().text("x", "panic");
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    assert_eq!(names(&engine, &p), ["b"]);
    let next = now.clone().text("x", "good");
    go(&engine, &mut now, next);
    assert_eq!(names(&engine, &p), ["a", "b"]);
    let subscription = Watched::Names(Arc::new(["x".into()].into()));
    engine.resources(&p, &NAMED.into(), &subscription);
    let next = now.clone().text("x", "panic");
    go(&engine, &mut now, next);
    assert_eq!(names(&engine, &p), ["a", "b"], "what it was last served of it stays");
}

#[test]
fn where_the_gate_only_reports_nothing_is_left_out() {
    let now =
        waiting().text("x", "none").list("plan", &["a", "b", "d", "e"]).text("d", "claim door").text("e", "claim door");
    let config = trysail_stages::Config { hold_back: false, ..config() };
    let engine = Engine::new(config, [native()], Arc::new(now));
    let p = proxy("p", "x", "1");
    assert_eq!(names(&engine, &p), ["a", "b", "d", "e"]);
    let node = engine.resources(&p, &ALL.into(), &Watched::Wildcard).node.unwrap();
    let said: BTreeSet<String> = engine.diagnostics(&p, &[node]).into_iter().map(|d| d.object).collect();
    assert_eq!(said, BTreeSet::from(["a".into(), "e".into()]));
}

#[test]
fn holes_of_one_field_may_claim_a_thing_once() {
    let now = World::default().text("a", "claim door").text("b", "claim door");
    // Two holes of field 2 and one of field 3.
    fn stage(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
        let hole = |key: &str| CallRef::new("toy", "piece", [key]);
        if function != "all" {
            return toy(ctx, function, args);
        }
        let mut output = Output::empty();
        output.item(Item::new("both", Message::default().hole(2, hole("a")).hole(2, hole("b")).hole(3, hole("b"))));
        Ok(output)
    }
    let stage: Arc<dyn Guest> = Arc::new(Native::new("toy", NativeCode::Stage(stage)));
    let engine = Engine::new(config(), [stage], Arc::new(now));
    let p = proxy("p", "x", "1");
    let (_, bytes) = resources(&engine, &p).remove(0);
    // A field is its key, its length, and a piece: the text in field 1.
    let piece = [&[0x0a, 10][..], b"claim door"].concat();
    assert_eq!(bytes, [&[0x12, 12][..], &piece, &[0x1a, 12], &piece].concat(), "another field is another list");
}

#[test]
fn whether_a_plugin_stands_somewhere_is_a_tracked_question() {
    let now = World::default().list("plan", &["a", "b"]).text("a", "hooked routes").text("b", "fine");
    let engine = engine(&now);
    let p = proxy("p", "x", "1");
    assert_eq!(text(&engine, &p, "a").as_deref(), Some("false"));
    let plugin = |digest: &str| trysail_stages::Hooked {
        id: format!("p@{digest}").into(),
        guest: native(),
        policy: trysail_stages::FailurePolicy::Skip,
        hook: "routes".into(),
        terms: None,
    };
    engine.set_hooks([("routes".into(), vec![plugin("1")])].into_iter().collect());
    let done = work(&engine, || assert_eq!(text(&engine, &p, "a").as_deref(), Some("true")));
    assert_eq!(done.runs, 1, "who asked is run again, and nobody else");
    engine.set_hooks([("routes".into(), vec![plugin("2")])].into_iter().collect());
    assert_eq!(work(&engine, || drop(resources(&engine, &p))).runs, 0, "another version is no other answer");
    engine.set_hooks(Default::default());
    assert_eq!(text(&engine, &p, "a").as_deref(), Some("false"));
}
