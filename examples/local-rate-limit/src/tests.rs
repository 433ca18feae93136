//! The plugin as a function, over a host that knows one namespace.

use std::cell::RefCell;

use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::any::unpack;
use trysail_sdk::{Diagnostic, Entry, Host, Level, Part, facts};

use super::*;

/// Answers for the namespace `shop`, and keeps what was asked.
struct Shop {
    label: Option<&'static str>,
    asked: RefCell<Vec<String>>,
}

impl Host for Shop {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        self.asked.borrow_mut().push(format!("{query}({})", args.join(", ")));
        let labels = self.label.map(|value| (LABEL.to_owned(), value.to_owned())).into_iter().collect();
        (args == ["shop"]).then(|| facts::Namespace { labels, ..Default::default() }.encode_to_vec())
    }

    fn report(&self, _level: Level, _message: &str) {}
}

/// The outcome at a place, and the questions asked for it.
fn at(label: Option<&'static str>, direction: &str, service: &str) -> (Outcome, Vec<String>) {
    let shop = Shop { label, asked: RefCell::default() };
    let args = [direction, service, "8080"].map(str::to_owned);
    let outcome = apply(&Ctx::new(&shop), "http-filters", &args, &[]).unwrap();
    (outcome, shop.asked.into_inner())
}

fn inserted(outcome: Outcome) -> (Vec<HttpFilter>, Vec<Diagnostic>) {
    let Outcome::Replaced(output) = outcome else { panic!("unchanged") };
    let decode = |entry: Entry| match entry {
        Entry::Item(Item { message: Message { parts }, .. }) => match &parts[..] {
            [Part::Bytes(bytes)] => HttpFilter::decode(&bytes[..]).unwrap(),
            other => panic!("a filter is plain bytes, not {other:?}"),
        },
        Entry::Include(call) => panic!("it calls nothing, and not {call:?}"),
    };
    (output.entries.into_iter().map(decode).collect(), output.diagnostics)
}

#[test]
fn the_label_of_the_namespace_becomes_a_token_bucket() {
    let (outcome, asked) = at(Some("50"), "inbound", "shop/cart.shop.svc.cluster.local");
    assert_eq!(asked, ["namespace(shop)"], "what it reads decides who is affected by a change");
    let (filters, diagnostics) = inserted(outcome);
    assert_eq!(diagnostics, []);
    let [filter] = &filters[..] else { panic!("one filter, not {filters:?}") };
    assert_eq!(filter.name, "envoy.filters.http.local_ratelimit");
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { panic!("it has a configuration") };
    let config: LocalRateLimit = unpack(any).unwrap().unwrap();
    let bucket = config.token_bucket.unwrap();
    assert_eq!((bucket.max_tokens, bucket.tokens_per_fill, bucket.fill_interval.unwrap().seconds), (50, Some(50), 1));
    for share in [config.filter_enabled, config.filter_enforced] {
        assert_eq!(share.unwrap().default_value.unwrap().numerator, 100, "of a hundred");
    }
    assert!(!config.stat_prefix.is_empty(), "Envoy refuses an empty one");
    let header = config.response_headers_to_add[0].header.clone().unwrap();
    assert_eq!((header.key.as_str(), header.value.as_str()), ("x-local-rate-limit", "true"));
}

#[test]
fn other_places_stay_as_they_are() {
    assert_eq!(at(Some("50"), "outbound", "shop/cart.shop.svc.cluster.local"), (Outcome::Unchanged, vec![]));
    assert_eq!(at(Some("50"), "inbound", ""), (Outcome::Unchanged, vec![]));
    assert_eq!(at(None, "inbound", "shop/cart.shop.svc.cluster.local").0, Outcome::Unchanged);
    assert_eq!(at(Some("50"), "inbound", "other/cart.other.svc.cluster.local").0, Outcome::Unchanged);
}

#[test]
fn a_label_that_is_no_number_is_reported_and_limits_nothing() {
    for bad in ["", "many", "0", "-1", "1.5", "4294967296"] {
        let (filters, diagnostics) = inserted(at(Some(bad), "inbound", "shop/cart.shop.svc.cluster.local").0);
        assert_eq!(filters, [], "{bad}");
        let [said] = &diagnostics[..] else { panic!("one diagnostic for {bad:?}, not {diagnostics:?}") };
        assert_eq!((said.severity, said.object.as_str()), (Severity::Error, "Namespace shop"));
        assert_eq!(said.field, "metadata.labels[example.trysail.dev/rate-limit]");
        assert!(said.message.contains(&format!("{bad:?}")), "{}", said.message);
    }
}

#[test]
fn wrong_calls_are_failures() {
    let shop = Shop { label: None, asked: RefCell::default() };
    let apply = |point, args: &[String]| apply(&Ctx::new(&shop), point, args, &[]);
    assert_eq!(apply("clusters", &[]), Err(Failure::UnknownFunction("clusters".into())));
    assert!(matches!(apply("http-filters", &[]), Err(Failure::BadArguments(_))));
}
