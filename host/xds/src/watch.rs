//! What a stream watches of one type, and how requests change it: istiod's rules, without any I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trysail_model::{Fingerprint, ResourceName, View, Watched};

use crate::kind::Kind;
use crate::nack;
use crate::names::{Interner, NameSet};
use crate::request::Request;

/// Versions that a client brought along from an earlier stream; [`Fingerprint::NONE`] for one that is no version of ours.
pub(crate) type Known = BTreeMap<ResourceName, Fingerprint>;

/// One type of one stream: what is asked for, what was sent, what was said to it.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) is_wildcard: bool,
    /// Names asked for; beside a wildcard those asked for on top of it.
    pub(crate) names: NameSet,
    /// The view that the client has once it took everything sent; unset before the first response.
    pub(crate) sent: Option<Arc<View>>,
    /// The view as of the last ACK after which nothing was missing.
    pub(crate) acked: Option<Arc<View>>,
    /// A response since `acked` was rejected: of it the client has nothing, or some.
    pub(crate) is_rejected: bool,
    /// The last response holds what the rejected one may have lost.
    pub(crate) is_mended: bool,
    /// Delta: what the client brought along; unset once the first response took it into account.
    pub(crate) known: Option<Arc<Known>>,
    /// Nonce of the last response; empty before the first.
    pub(crate) nonce: String,
    /// Nonce of the last response that was acknowledged.
    pub(crate) acked_nonce: String,
    /// Nonce and words of the last NACK, so that a repeated one is not logged again; unset after an ACK.
    pub(crate) last_error: Option<(String, String)>,
    /// State of the world: answer the next request although it looks like an ACK, because clusters are warming.
    pub(crate) always_respond: bool,
    /// What the client waits for.
    pub(crate) due: Due,
}

/// What a client waits for, beyond what changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Everything that is watched, changed or not.
    pub(crate) everything: bool,
    /// These names, changed or not.
    pub(crate) names: BTreeSet<ResourceName>,
    /// A response, even an empty one.
    pub(crate) answer: bool,
    /// Whatever differs from what the client has.
    pub(crate) difference: bool,
}

impl Due {
    pub(crate) fn is_due(&self) -> bool {
        self.everything || self.answer || self.difference || !self.names.is_empty()
    }

    /// Puts back what was taken and not served.
    pub(crate) fn merge(&mut self, other: &Due) {
        self.everything |= other.everything;
        self.answer |= other.answer;
        self.difference |= other.difference;
        self.names.extend(other.names.iter().cloned());
    }
}

/// What a request was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The first of its type, or a new beginning.
    Subscribed,
    /// A change of names, or nothing at all.
    Spontaneous,
    /// The last response was taken.
    Acked,
    /// A response was refused.
    Rejected,
    /// It speaks of a response that is not the last one.
    Expired,
    /// Nothing of the type is wanted any more.
    Unsubscribed,
}

impl Watch {
    fn new(is_wildcard: bool, names: NameSet) -> Self {
        Watch {
            is_wildcard,
            names,
            sent: None,
            acked: None,
            is_rejected: false,
            is_mended: false,
            known: None,
            nonce: String::new(),
            acked_nonce: String::new(),
            last_error: None,
            always_respond: false,
            due: Due::default(),
        }
    }

    /// What the translation is asked for.
    pub(crate) fn watched(&self) -> Watched {
        if self.is_wildcard { Watched::Wildcard } else { Watched::Names(self.names.clone()) }
    }

    /// The client took the last response.
    fn ack(&mut self) {
        self.acked_nonce.clone_from(&self.nonce);
        self.last_error = None;
        if !self.is_rejected || self.is_mended {
            self.acked.clone_from(&self.sent);
            self.is_rejected = false;
        }
    }
}

/// Applies a state-of-the-world request.
pub(crate) fn apply_sotw(slot: &mut Option<Watch>, kind: Kind, request: &Request, interner: &Interner) -> Verdict {
    let is_wildcard = !kind.is_named() && (request.names.is_empty() || request.names.iter().any(|name| name == "*"));
    let wanted = |is_wildcard: bool| match is_wildcard {
        true => interner.set(BTreeSet::new()),
        false => interner.set(request.names.iter().map(|name| interner.name(name)).collect()),
    };
    if request.error.is_some() {
        return match slot {
            Some(watch) => {
                reject(watch, request);
                // istiod forgets names that a NACK adds; Envoy does put both into one request.
                if request.nonce == watch.nonce && !request.names.is_empty() && !is_wildcard {
                    rename(watch, wanted(false), kind);
                }
                Verdict::Rejected
            }
            None => reject_unknown(slot, request, |slot| {
                if !(kind.is_named() && request.names.is_empty()) {
                    subscribe_sotw(slot, is_wildcard, wanted(is_wildcard));
                }
            }),
        };
    }
    if kind.is_named() && request.names.is_empty() {
        return match slot.take() {
            Some(_) => Verdict::Unsubscribed,
            None => Verdict::Spontaneous,
        };
    }
    match slot {
        Some(watch) if !request.nonce.is_empty() => {
            if request.nonce != watch.nonce {
                return Verdict::Expired;
            }
            watch.ack();
            let always_respond = std::mem::take(&mut watch.always_respond);
            if is_wildcard != watch.is_wildcard {
                watch.due.everything = true;
                watch.due.answer = true;
            }
            watch.is_wildcard = is_wildcard;
            rename(watch, wanted(is_wildcard), kind);
            if always_respond {
                watch.due.everything = true;
                watch.due.answer = true;
            }
            Verdict::Acked
        }
        slot => {
            subscribe_sotw(slot, is_wildcard, wanted(is_wildcard));
            Verdict::Subscribed
        }
    }
}

/// Without a nonce, or of an unknown type: everything is answered, as for a client that knows nothing.
fn subscribe_sotw(slot: &mut Option<Watch>, is_wildcard: bool, names: NameSet) {
    let before = slot.take();
    let mut watch = Watch::new(is_wildcard, names);
    // The translation may have to hold on to what was served; the client is sent all of it anyway.
    watch.sent = before.and_then(|before| before.sent);
    watch.due.everything = true;
    watch.due.answer = true;
    *slot = Some(watch);
}

/// Replaces the names of a state-of-the-world watch. Of types asked for by name only the added ones are answered, and
/// fewer names need no answer; of the others any change is answered in full.
fn rename(watch: &mut Watch, names: NameSet, kind: Kind) {
    if Arc::ptr_eq(&watch.names, &names) || *watch.names == *names {
        return;
    }
    let added: Vec<ResourceName> = names.difference(&watch.names).cloned().collect();
    if !kind.is_named() {
        watch.due.everything = true;
        watch.due.answer = true;
    } else if !added.is_empty() {
        watch.due.names.extend(added);
        watch.due.answer = true;
    }
    watch.due.names.retain(|name| names.contains(name));
    watch.names = names;
}

/// Applies a delta request.
///
/// istiod drops changes of names that come with a NACK or with an expired nonce, and does not answer names that it takes
/// for held; the protocol says that each change counts, and that a name subscribed to is always answered, because the
/// client may have forgotten it.
pub(crate) fn apply_delta(slot: &mut Option<Watch>, kind: Kind, request: &Request, interner: &Interner) -> Verdict {
    let Some(watch) = slot else {
        if request.error.is_some() {
            return reject_unknown(slot, request, |slot| subscribe_delta(slot, kind, request, interner));
        }
        subscribe_delta(slot, kind, request, interner);
        return Verdict::Subscribed;
    };
    let verdict = if request.error.is_some() {
        reject(watch, request);
        Verdict::Rejected
    } else if request.nonce.is_empty() {
        Verdict::Spontaneous
    } else if request.nonce == watch.nonce {
        watch.ack();
        Verdict::Acked
    } else {
        Verdict::Expired
    };
    change_delta(watch, request, interner);
    verdict
}

fn subscribe_delta(slot: &mut Option<Watch>, kind: Kind, request: &Request, interner: &Interner) {
    let star = |names: &[String]| names.iter().any(|name| name == "*");
    // A first request without names is the old form of a wildcard, except for types that have none.
    let is_wildcard =
        !star(&request.unsubscribe) && (star(&request.names) || (request.names.is_empty() && !kind.is_named()));
    let known = |(name, version): (&String, &String)| (interner.name(name), parse_version(version));
    let known: Known = request.initial_versions.iter().map(known).filter(|(name, _)| name.as_str() != "*").collect();

    let mut names: BTreeSet<ResourceName> =
        request.names.iter().filter(|name| *name != "*").map(|name| interner.name(name)).collect();
    let mut watch = Watch::new(is_wildcard, interner.set(BTreeSet::new()));
    // Of what the client has only the difference is sent; the rest of what it names is answered, also when it does not
    // exist.
    watch.due.names = names.iter().filter(|name| !known.contains_key(*name)).cloned().collect();
    watch.due.difference = true;
    watch.due.answer = !watch.due.names.is_empty();
    if is_wildcard && known.is_empty() {
        // Envoy's start waits for this answer, even if there is nothing.
        watch.due.everything = true;
        watch.due.answer = true;
    }
    if !is_wildcard {
        // Names that the client has count as subscribed to.
        names.extend(known.keys().cloned());
    }
    for name in &request.unsubscribe {
        names.remove(name.as_str());
        watch.due.names.remove(name.as_str());
    }
    watch.names = interner.set(names);
    watch.known = (!known.is_empty()).then(|| Arc::new(known));
    *slot = Some(watch);
}

fn change_delta(watch: &mut Watch, request: &Request, interner: &Interner) {
    if request.names.is_empty() && request.unsubscribe.is_empty() {
        return;
    }
    let mut names = BTreeSet::clone(&watch.names);
    for name in &request.names {
        if name == "*" {
            watch.is_wildcard = true;
            watch.due.everything = true;
        } else {
            let name = interner.name(name);
            watch.due.names.insert(name.clone());
            names.insert(name);
        }
        watch.due.answer = true;
    }
    for name in &request.unsubscribe {
        if name == "*" {
            watch.is_wildcard = false;
            continue;
        }
        let was_there = names.remove(name.as_str());
        watch.due.names.remove(name.as_str());
        if watch.is_wildcard && was_there {
            // The wildcard may still cover it: the client has to hear what becomes of it.
            watch.due.names.insert(interner.name(name));
            watch.due.answer = true;
        }
    }
    watch.names = interner.set(names);
}

fn reject(watch: &mut Watch, request: &Request) {
    // Also a NACK of an earlier response counts: what was in it is missing at the client.
    watch.is_rejected |= !watch.nonce.is_empty();
    watch.is_mended = false;
    if let Some((_, words)) = &request.error {
        watch.last_error = Some((request.nonce.clone(), nack::cut(words, nack::MAX_WORDS).to_owned()));
    }
}

/// A NACK of a type that this stream never sent. Without a nonce it is a client that could not say it on its last stream
/// and now asks for the type anew; istiod ignores it, and the client would wait for ever. With a nonce it is nothing.
fn reject_unknown(slot: &mut Option<Watch>, request: &Request, subscribe: impl FnOnce(&mut Option<Watch>)) -> Verdict {
    if request.nonce.is_empty() {
        subscribe(slot);
    }
    Verdict::Rejected
}

/// A version as it is written on the wire: 32 hexadecimal digits.
fn parse_version(text: &str) -> Fingerprint {
    let is_ours = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let number = if is_ours { u128::from_str_radix(text, 16).ok() } else { None };
    number.map_or(Fingerprint::NONE, Fingerprint)
}

#[cfg(test)]
mod tests;
