//! The short way for what is in order, which is nearly everything: one pass over the bytes, without a message being built.
//!
//! It says "clean" or "look closer". A message that it calls clean has no breach; whatever it is not sure about it leaves to the
//! long way, which also finds the words for a breach. It takes a twentieth of the long way's time.

mod shape;

use std::collections::HashSet;

use prost_reflect::DynamicMessage;
use prost_reflect::prost::Message as _;
use prost_reflect::prost::encoding::{WireType, decode_key, decode_varint};

use self::shape::{Content, Field, Reading, Scalar, Shape};
use super::plan::Check;
use super::{Inspected, Place, Reference, Target, check, clusters, unique};
use crate::find_message;
use crate::path::Step;

/// Nesting beyond which the long way decides, far below what the stack bears.
const DEPTH: usize = 40;

/// What there is to know of a message without a breach; none when it has to be looked at closer.
pub(super) fn inspect(message_name: &str, bytes: &[u8], holes: Option<u32>) -> Option<Inspected> {
    let shape = shape::named(trysail_proto::any::full_name(message_name))?;
    let mut pass = Pass { references: Vec::new() };
    pass.message(shape, bytes, &Place { outer: None, step: None, holes }, 0)?;
    let claims = match shape.reading {
        Reading::VirtualHost => claims(bytes)?,
        Reading::Chain(found) => chain_claims(bytes, found)?,
        _ => Vec::new(),
    };
    Some(Inspected { violations: Vec::new(), references: pass.references, claims })
}

struct Pass {
    references: Vec<Reference>,
}

/// `None` in all of these: look closer.
impl Pass {
    fn message(&mut self, shape: &'static Shape, bytes: &[u8], place: &Place<'_>, depth: usize) -> Option<()> {
        if depth > DEPTH || shape.is_large {
            return None;
        }
        if shape.reading == Reading::Any {
            return self.any(bytes, place, depth);
        }
        self.own_references(shape, bytes, place)?;
        let own = self.references.len();
        let (mut seen, mut oneofs) = (0_u128, 0_u64);
        let mut counts = [0_u32; 128];
        // Fields of which more is to come.
        let mut awaited = 0_u128;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (number, wire) = decode_key(&mut rest).ok()?;
            let Some(index) = shape.index(number) else {
                skip(&mut rest, wire)?;
                match place.holes.and_then(|first| number.checked_sub(first)) {
                    None => {}
                    Some(0) => awaited = u128::MAX,
                    Some(field) => awaited |= shape.index(field).map_or(0, |index| 1 << index),
                }
                continue;
            };
            let field = &shape.fields[index];
            let is_new = seen & (1 << index) == 0;
            seen |= 1 << index;
            if !field.is_list {
                // The last one counts, or both are merged: not for a short way.
                let taken = field.oneof.is_some_and(|oneof| oneofs & (1 << oneof) != 0);
                if !is_new || taken {
                    return None;
                }
                oneofs |= field.oneof.map_or(0, |oneof| 1 << oneof);
            }
            let n_before = counts[index] as usize;
            counts[index] += self.value(field, wire, &mut rest, n_before, place, depth)?;
        }
        for (index, field) in shape.fields.iter().enumerate() {
            if seen & (1 << index) == 0 {
                if awaited & (1 << index) == 0 && !field.may_be_absent {
                    return None;
                }
            } else if let Some(range) = &field.counts
                && !range.contains(&counts[index])
            {
                return None;
            }
        }
        if shape.required_oneofs.iter().any(|members| members & (seen | awaited) == 0) {
            return None;
        }
        if shape.one_of != 0 && shape.one_of & (seen | awaited) == 0 {
            return None;
        }
        if let Some(chain) = &shape.chain
            && shape.index(chain.filters).is_none_or(|index| awaited & (1 << index) == 0)
        {
            in_order(bytes, chain)?;
        }
        // The long way does not look into what its file exempts.
        if shape.is_disabled {
            self.references.truncate(own);
        }
        self.unique(shape, bytes)
    }

    /// Reads one occurrence of a field. Returns how many items it held.
    fn value(
        &mut self,
        field: &'static Field,
        wire: WireType,
        rest: &mut &[u8],
        n_before: usize,
        place: &Place<'_>,
        depth: usize,
    ) -> Option<u32> {
        match (&field.content, wire) {
            (Content::Scalar(scalar), WireType::LengthDelimited) if field.is_list && scalar.is_packable() => {
                let mut packed = delimited(rest)?;
                let mut n_items = 0;
                while !packed.is_empty() {
                    self.scalar(field, scalar, scalar.wire(), &mut packed)?;
                    n_items += 1;
                }
                Some(n_items)
            }
            (Content::Scalar(scalar), _) => self.scalar(field, scalar, wire, rest).map(|()| 1),
            (Content::Message(inner), WireType::LengthDelimited) => {
                let shape = inner.shape()?;
                let inner = delimited(rest)?;
                let step = Step::Field(&field.name);
                let outer = place.at(&step);
                let kept = self.references.len();
                if field.is_map {
                    self.entry(field, shape, inner, &outer, depth)?;
                } else if field.is_list {
                    let step = Step::Index(n_before);
                    self.checked(field.check(), shape, inner)?;
                    self.message(shape, inner, &outer.at(&step), depth + 1)?;
                } else {
                    self.checked(field.check(), shape, inner)?;
                    self.message(shape, inner, &outer, depth + 1)?;
                }
                if field.is_skipped {
                    self.references.truncate(kept);
                }
                Some(1)
            }
            _ => None,
        }
    }

    fn scalar(&self, field: &Field, scalar: &Scalar, wire: WireType, rest: &mut &[u8]) -> Option<()> {
        scalar_value(scalar, wire, rest, field.check())
    }

    /// An entry of a map whose values are messages or scalars.
    fn entry(
        &mut self,
        field: &'static Field,
        shape: &'static Shape,
        bytes: &[u8],
        place: &Place<'_>,
        depth: usize,
    ) -> Option<()> {
        let (mut key, mut value) = (None, None);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (number, wire) = decode_key(&mut rest).ok()?;
            let of = match number {
                1 if key.is_none() => &mut key,
                2 if value.is_none() => &mut value,
                _ => return None,
            };
            let start = rest;
            skip(&mut rest, wire)?;
            *of = Some((wire, &start[..start.len() - rest.len()]));
        }
        // Entries without a key or value have default ones: rare enough for the long way.
        let ((key_wire, mut key), (value_wire, mut value)) = (key?, value?);
        let [key_field, value_field] = &shape.fields[..] else { return None };
        let Content::Scalar(scalar) = &key_field.content else { return None };
        let text =
            if matches!(scalar, Scalar::Text) { std::str::from_utf8(delimited(&mut { key })?).ok()? } else { "" };
        scalar_value(scalar, key_wire, &mut key, field.keys())?;
        match &value_field.content {
            Content::Scalar(scalar) => scalar_value(scalar, value_wire, &mut value, field.values()),
            Content::Message(inner) if value_wire == WireType::LengthDelimited => {
                let shape = inner.shape()?;
                let inner = delimited(&mut value)?;
                self.checked(field.values(), shape, inner)?;
                let step = Step::Key(text);
                self.message(shape, inner, &place.at(&step), depth + 1)
            }
            Content::Message(_) => None,
        }
    }

    /// Rules of the field that holds a message: of durations, wrappers and `Any`s.
    fn checked(&self, check: &'static Check, shape: &'static Shape, bytes: &[u8]) -> Option<()> {
        let mut findings = Vec::new();
        match check {
            Check::Nothing => return Some(()),
            Check::Duration(range) => {
                let duration = trysail_proto::prost_types::Duration::decode(bytes).ok()?;
                check::duration(duration, range, &mut findings);
            }
            Check::Any(rules) => {
                let (type_url, _) = any_parts(bytes)?;
                check::type_url(type_url, rules, &mut findings);
            }
            // Wrappers: what they hold, or its default.
            check => {
                let [inner] = &shape.fields[..] else { return None };
                let Content::Scalar(scalar) = &inner.content else { return None };
                let mut rest = bytes;
                if rest.is_empty() {
                    return scalar.default_fits(check).then_some(());
                }
                let (number, wire) = decode_key(&mut rest).ok()?;
                if number != 1 {
                    return None;
                }
                scalar_value(scalar, wire, &mut rest, check)?;
                return rest.is_empty().then_some(());
            }
        }
        findings.is_empty().then_some(())
    }

    fn any(&mut self, bytes: &[u8], place: &Place<'_>, depth: usize) -> Option<()> {
        let (type_url, value) = any_parts(bytes)?;
        let Some(shape) = shape::named(trysail_proto::any::full_name(type_url)) else { return Some(()) };
        self.message(shape, value, place, depth + 1)
    }

    /// What the message itself names, as [`references`](super::references) has it.
    fn own_references(&mut self, shape: &Shape, bytes: &[u8], place: &Place<'_>) -> Option<()> {
        let (target, number, field) = match shape.reading {
            Reading::Cluster { name, r#type, lb_policy, cluster_type, eds, eds_config, service_name, ads, is_eds } => {
                let is = |number: u32, value: i32| Some(varint(bytes, number)? == u64::from(value.unsigned_abs()));
                let odd = is(r#type, clusters::ORIGINAL_DST)? && !is(lb_policy, clusters::CLUSTER_PROVIDED)?;
                if odd || once(bytes, cluster_type)?.is_some() {
                    return None;
                }
                let Some(config) = once(bytes, eds)? else { return Some(()) };
                let source = once(config, eds_config)?;
                let from_ads = source.is_some_and(|source| matches!(once(source, ads), Some(Some(_))));
                if !from_ads || varint(bytes, r#type)? != is_eds {
                    return Some(());
                }
                let named = once(config, service_name)?.filter(|named| !named.is_empty());
                let named = if named.is_some() { named } else { once(bytes, name)? };
                return self.add(Target::Endpoints, named, "eds_cluster_config", place);
            }
            Reading::Discovered { source, ads, name, field, target } => {
                let from_ads = once(bytes, source)?.is_some_and(|source| matches!(once(source, ads), Some(Some(_))));
                if !from_ads {
                    return Some(());
                }
                (target, name, field)
            }
            Reading::Extension { discovery, source, ads, no_warming, name } => {
                let Some(discovery) = once(bytes, discovery)? else { return Some(()) };
                let from_ads =
                    once(discovery, source)?.is_some_and(|source| matches!(once(source, ads), Some(Some(_))));
                if !from_ads || varint(discovery, no_warming)? == 1 {
                    return Some(());
                }
                (Target::Extension, name, "name")
            }
            Reading::Destination { name, field } => (Target::Cluster, name, field),
            Reading::Nothing
            | Reading::Any
            | Reading::VirtualHost
            | Reading::Routes(_)
            | Reading::Chain(_)
            | Reading::Listener { .. } => return Some(()),
        };
        let named = once(bytes, number)?;
        self.add(target, named, field, place)
    }

    fn add(&mut self, target: Target, name: Option<&[u8]>, field: &str, place: &Place<'_>) -> Option<()> {
        let name = std::str::from_utf8(name.unwrap_or_default()).ok()?;
        if !name.is_empty() {
            let path = place.at(&Step::Field(field)).render();
            self.references.push(Reference { target, name: name.to_owned(), path });
        }
        Some(())
    }

    /// What may be there once only, as [`unique`] has it.
    fn unique(&self, shape: &Shape, bytes: &[u8]) -> Option<()> {
        match shape.reading {
            Reading::Routes(hosts) => {
                let hosts = all(bytes, hosts)?;
                let mut taken = HashSet::new();
                let mut is_free = |claim| taken.insert(claim);
                if hosts.len() > 1 {
                    for host in hosts {
                        if !claims(host)?.into_iter().all(&mut is_free) {
                            return None;
                        }
                    }
                }
                Some(())
            }
            Reading::Listener { chains, r#match, matcher } => {
                let chains = all(bytes, chains)?;
                if chains.len() < 2 || once(bytes, matcher)?.is_some() {
                    return Some(());
                }
                let mut taken = HashSet::new();
                let mut is_free = |claim| taken.insert(claim);
                for chain in chains {
                    if !chain_claims(chain, r#match)?.into_iter().all(&mut is_free) {
                        return None;
                    }
                }
                Some(())
            }
            _ => Some(()),
        }
    }
}

/// Does one of the known filters end the chain, and the last one alone? All else the long way finds out.
fn in_order(bytes: &[u8], chain: &shape::Filters) -> Option<()> {
    let filters = all(bytes, chain.filters)?;
    for (left, filter) in (0..filters.len()).rev().zip(&filters) {
        let config = once(filter, chain.config)?.map(any_parts);
        let of = match config {
            Some(parts) => trysail_proto::any::full_name(parts?.0),
            None => "",
        };
        if chain.ends.contains(&of) != (left == 0) {
            return None;
        }
    }
    Some(())
}

/// What a filter chain matches as claims; its match is the field of this number.
fn chain_claims(chain: &[u8], found: u32) -> Option<Vec<String>> {
    let descriptor = find_message("envoy.config.listener.v3.FilterChainMatch")?;
    // Equal matches may be spelled differently.
    let found = DynamicMessage::decode(descriptor, once(chain, found)?.unwrap_or_default()).ok()?;
    Some(unique::of_match(&found))
}

/// Name and domains of a virtual host as claims.
fn claims(host: &[u8]) -> Option<Vec<String>> {
    const NAME: u32 = 1;
    const DOMAINS: u32 = 2;
    let name = std::str::from_utf8(once(host, NAME)?.unwrap_or_default()).ok()?;
    let mut claims = vec![format!("name:{name}")];
    for domain in all(host, DOMAINS)? {
        claims.push(format!("domain:{}", std::str::from_utf8(domain).ok()?.to_lowercase()));
    }
    Some(claims)
}

/// Reads a value that is no message, and judges it.
fn scalar_value(scalar: &Scalar, wire: WireType, rest: &mut &[u8], check: &Check) -> Option<()> {
    if wire != scalar.wire() {
        return None;
    }
    let mut findings = Vec::new();
    match scalar {
        Scalar::Text => {
            let text = std::str::from_utf8(delimited(rest)?).ok()?;
            if let Check::Text(rules) = check {
                check::text(text, rules, &mut findings);
            }
        }
        Scalar::Bytes => {
            let bytes = delimited(rest)?;
            if let Check::Bytes(rules) = check {
                check::bytes(bytes, rules, &mut findings);
            }
        }
        Scalar::Bool => {
            let truth = decode_varint(rest).ok()? != 0;
            if matches!(check, Check::Bool(expected) if *expected != truth) {
                return None;
            }
        }
        Scalar::Enum(descriptor) => {
            let number = decode_varint(rest).ok()? as i32;
            if let Check::Enum(rules) = check {
                check::enum_number(number, rules, Some(descriptor), &mut findings);
            }
        }
        scalar => {
            let number = scalar.number(rest)?;
            match (check, number) {
                (Check::Integer(range), shape::Number::Whole(number)) => check::integer(number, range, &mut findings),
                (Check::Float(range), shape::Number::Float(number)) => {
                    check::number(number, range, "double", f64::to_string, &mut findings);
                }
                _ => {}
            }
        }
    }
    findings.is_empty().then_some(())
}

/// Type and value of an `Any`.
fn any_parts(bytes: &[u8]) -> Option<(&str, &[u8])> {
    const TYPE_URL: u32 = 1;
    const VALUE: u32 = 2;
    let (mut type_url, mut value) = (None, None);
    let mut rest = bytes;
    while !rest.is_empty() {
        match decode_key(&mut rest).ok()? {
            (TYPE_URL, WireType::LengthDelimited) if type_url.is_none() => type_url = Some(delimited(&mut rest)?),
            (VALUE, WireType::LengthDelimited) if value.is_none() => value = Some(delimited(&mut rest)?),
            (TYPE_URL | VALUE, _) => return None,
            (_, wire) => skip(&mut rest, wire)?,
        }
    }
    Some((std::str::from_utf8(type_url.unwrap_or_default()).ok()?, value.unwrap_or_default()))
}

/// The content of a length-delimited field that may come once. None inside when it does not come.
fn once(bytes: &[u8], number: u32) -> Option<Option<&[u8]>> {
    let (mut found, mut rest) = (None, bytes);
    while !rest.is_empty() {
        match decode_key(&mut rest).ok()? {
            (at, WireType::LengthDelimited) if at == number && found.is_none() => found = Some(delimited(&mut rest)?),
            (at, _) if at == number => return None,
            (_, wire) => skip(&mut rest, wire)?,
        }
    }
    Some(found)
}

/// The contents of a length-delimited field.
fn all(bytes: &[u8], number: u32) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (at, wire) = decode_key(&mut rest).ok()?;
        if at == number && wire == WireType::LengthDelimited {
            found.push(delimited(&mut rest)?);
        } else {
            skip(&mut rest, wire)?;
        }
    }
    Some(found)
}

/// The number in a field; 0 when it is absent.
fn varint(bytes: &[u8], number: u32) -> Option<u64> {
    let (mut found, mut rest) = (0, bytes);
    while !rest.is_empty() {
        let (at, wire) = decode_key(&mut rest).ok()?;
        if at == number && wire == WireType::Varint {
            found = decode_varint(&mut rest).ok()?;
        } else {
            skip(&mut rest, wire)?;
        }
    }
    Some(found)
}

fn delimited<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (content, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(content)
}

fn skip(rest: &mut &[u8], wire: WireType) -> Option<()> {
    let len = match wire {
        WireType::Varint => return decode_varint(rest).ok().map(drop),
        WireType::LengthDelimited => return delimited(rest).map(drop),
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        // Groups: nobody sends them.
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    *rest = rest.get(len..)?;
    Some(())
}

#[cfg(test)]
mod tests;
