//! What the log says about a response that Envoy rejected.

use std::collections::BTreeSet;

use tonic::Code;
use trysail_model::{Proxy, Translator, View};

use crate::Metrics;
use crate::kind::Kind;
use crate::stream::Rejected;

/// Bytes of Envoy's words that are logged and kept: it may quote whole resources.
pub(crate) const MAX_WORDS: usize = 2048;
/// Resources that one NACK is traced back for.
const MAX_NAMES: usize = 16;

/// Logs a NACK with the objects and stages behind the resources that Envoy names. It asks the translation, so it belongs
/// on a thread of the pool.
pub(crate) fn log(translator: &dyn Translator, metrics: &Metrics, proxy: &Proxy, connection: &str, nack: &Rejected) {
    let Some(kind) = nack.kind else {
        return plain(connection, nack);
    };
    let names = nack.sent.as_ref().map(|sent| named(&nack.words, sent)).unwrap_or_default();
    let (mut objects, mut stages, mut plugins) = (BTreeSet::new(), Vec::new(), Vec::new());
    for name in &names {
        let provenance = translator.provenance(proxy, kind.url(), name);
        objects.extend(provenance.objects.iter().map(ToString::to_string));
        for stage in provenance.stages {
            if !stages.contains(&stage) {
                stages.push(stage);
            }
        }
        plugins.extend(provenance.plugins);
    }
    let blamed = blamed(&nack.words, &plugins);
    for plugin in &blamed {
        metrics.rejected_plugin(plugin);
    }
    tracing::warn!(
        proxy = connection,
        r#type = kind.short(),
        resources = names.join(", "),
        code = ?Code::from_i32(nack.code),
        detail = cut(&nack.words, MAX_WORDS),
        objects = objects.into_iter().collect::<Vec<_>>().join(", "),
        stages = stages.join(", "),
        plugins = blamed.into_iter().collect::<Vec<_>>().join(", "),
        "a proxy rejected its configuration"
    );
}

/// The plugins at whose door a rejection lies: those that wrote a field that Envoy names, or, if it names none of theirs, all that
/// wrote anything in what was rejected.
///
/// Envoy names fields in words (`ClusterValidationError.ConnectTimeout`) or as they are written (`connect_timeout`).
fn blamed<'a>(words: &str, plugins: &'a [(String, Vec<String>)]) -> BTreeSet<&'a str> {
    let words = words.to_ascii_lowercase();
    let names = |path: &String| {
        let field = path.split('/').rev().find(|step| !step.contains('=') && step.parse::<usize>().is_err());
        let field = field.unwrap_or_default();
        !field.is_empty() && (words.contains(field) || words.contains(&field.replace('_', "")))
    };
    // A plugin is known by its name and, behind a sign that names have not, its digest.
    let name = |(plugin, _): &'a (String, Vec<String>)| plugin.split('@').next().unwrap_or(plugin);
    let named: BTreeSet<&str> = plugins.iter().filter(|(_, paths)| paths.iter().any(names)).map(name).collect();
    if named.is_empty() { plugins.iter().map(name).collect() } else { named }
}

/// Logs a NACK without asking who made the resources.
pub(crate) fn plain(connection: &str, nack: &Rejected) {
    tracing::warn!(
        proxy = connection,
        r#type = nack.kind.map_or("unknown", Kind::short),
        code = ?Code::from_i32(nack.code),
        detail = cut(&nack.words, MAX_WORDS),
        "a proxy rejected its configuration"
    );
}

/// The resources of `sent` that Envoy's words name, in the order in which it names them; if it names none and there is
/// only one, that one.
///
/// Envoy writes `Error adding/updating cluster(s) a: why, b: why` and the like: names stand between blanks, with
/// punctuation behind.
fn named(words: &str, sent: &View) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        if names.len() == MAX_NAMES {
            break;
        }
        // Brackets and colons may belong to the name, which has an address in it.
        let bare = word.trim_matches(['\'', '"', '(', ')', ',', ';']);
        let ended = bare.trim_end_matches([':', '.', ',', '\'', '"', ')']);
        let inner = ended.trim_matches(['[', ']']);
        let known = [word, bare, ended, inner].into_iter().find(|name| {
            // The resource without a name is named by nobody.
            !name.is_empty() && sent.get(name).is_some()
        });
        if let Some(name) = known
            && !names.iter().any(|seen| seen == name)
        {
            names.push(name.to_owned());
        }
    }
    match &sent.resources[..] {
        [only] if names.is_empty() => vec![only.name.as_str().to_owned()],
        _ => names,
    }
}

/// At most `max` bytes, cut between characters.
pub(crate) fn cut(words: &str, max: usize) -> &str {
    let mut end = words.len().min(max);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    &words[..end]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trysail_model::{Fingerprint, Resource, Rope};

    use super::*;

    fn view(names: &[&str]) -> View {
        let resource = |name: &&str| {
            let resource = Resource { name: (*name).into(), version: Fingerprint(1), body: Rope::default() };
            Arc::new(resource)
        };
        View { id: 1, resources: names.iter().map(resource).collect(), fingerprint: Fingerprint(1) }
    }

    #[test]
    fn finds_the_names_in_envoys_words() {
        let sent = view(&["0.0.0.0_80", "[::1]_80", "outbound|80||a.shop", "virtualInbound"]);
        let cases = [
            (
                "Error adding/updating listener(s) 0.0.0.0_80: no such filter\nvirtualInbound: bad",
                vec!["0.0.0.0_80", "virtualInbound"],
            ),
            (
                "Error adding/updating cluster(s) outbound|80||a.shop: bad, outbound|80||a.shop: worse",
                vec!["outbound|80||a.shop"],
            ),
            ("route '[::1]_80', unknown", vec!["[::1]_80"]),
            ("nothing known", vec![]),
            ("", vec![]),
        ];
        for (words, names) in cases {
            assert_eq!(named(words, &sent), names, "{words}");
        }
        assert_eq!(named("nothing known", &view(&["only"])), ["only"]);
    }

    #[test]
    fn a_rejection_lies_with_who_wrote_the_field() {
        let plugins: Vec<(String, Vec<String>)> = vec![
            ("quick@1".into(), vec!["connect_timeout".into()]),
            ("wide@2".into(), vec!["circuit_breakers/thresholds/0/max_requests".into()]),
        ];
        let blamed = |words| blamed(words, &plugins).into_iter().collect::<Vec<_>>();
        assert_eq!(blamed("ClusterValidationError.ConnectTimeout: value must be greater than 0s"), ["quick"]);
        assert_eq!(blamed("max_requests: bad"), ["wide"]);
        assert_eq!(blamed("no such thing"), ["quick", "wide"], "who wrote nothing that is named cannot be told apart");
    }

    #[test]
    fn words_are_cut_between_characters() {
        let words = format!("{}é", "x".repeat(MAX_WORDS - 1));
        assert_eq!(cut(&words, MAX_WORDS).len(), MAX_WORDS - 1);
        assert_eq!(cut("short", MAX_WORDS), "short");
    }
}
