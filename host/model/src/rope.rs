//! Ropes: encoded protobuf as a tree of shared segments.

use std::sync::Arc;

use bytes::{BufMut, Bytes};

use crate::Fingerprint;

/// An encoded message, or part of one, made of segments that other ropes may share.
///
/// **Invariant:** the concatenation of its segments is what an ordinary encoder would have written, because a
/// protobuf message is the concatenation of its encoded fields and the lengths of nested ones are computed here.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    parts: Arc<[Part]>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Part {
    Bytes(Bytes),
    Rope(Rope),
}

impl Rope {
    /// A rope of one segment.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Rope { len: bytes.len(), parts: [Part::Bytes(bytes)].into() }
    }

    /// Length of the encoded bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `visit` with each segment in order.
    pub fn for_each(&self, visit: &mut impl FnMut(&[u8])) {
        for part in self.parts.iter() {
            match part {
                Part::Bytes(bytes) => visit(bytes),
                Part::Rope(rope) => rope.for_each(visit),
            }
        }
    }

    fn segments<'a>(&'a self, found: &mut Vec<&'a Bytes>) {
        for part in self.parts.iter() {
            match part {
                Part::Bytes(bytes) => found.push(bytes),
                Part::Rope(rope) => rope.segments(found),
            }
        }
    }

    /// Cuts bytes that were made from this rope's so that they share its segments where these are in them still, in order.
    /// The other pieces are copies, so that nothing keeps the whole in memory.
    pub fn share_with(&self, bytes: &[u8]) -> Vec<Bytes> {
        /// What is smaller costs more to share than to copy.
        const SMALLEST: usize = 128;
        let mut segments = Vec::new();
        self.segments(&mut segments);
        let mut cut = Vec::new();
        let mut rest = bytes;
        for segment in segments.into_iter().filter(|segment| segment.len() >= SMALLEST) {
            let Some(at) = memchr::memmem::find(rest, segment) else { continue };
            let (before, after) = rest.split_at(at);
            if !before.is_empty() {
                cut.push(Bytes::copy_from_slice(before));
            }
            cut.push(segment.clone());
            rest = &after[segment.len()..];
        }
        if !rest.is_empty() {
            cut.push(Bytes::copy_from_slice(rest));
        }
        cut
    }

    /// Appends the encoded bytes to a buffer: the one copy on the way to the wire.
    pub fn write_to(&self, out: &mut impl BufMut) {
        self.for_each(&mut |segment| out.put_slice(segment));
    }

    /// The encoded bytes in one piece; without a copy when there is just one segment.
    pub fn to_bytes(&self) -> Bytes {
        if let [Part::Bytes(only)] = &*self.parts {
            return only.clone();
        }
        let mut out = Vec::with_capacity(self.len);
        self.write_to(&mut out);
        out.into()
    }

    /// Fingerprint of the encoded bytes, however they are cut into segments.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        self.for_each(&mut |segment| {
            hasher.update(segment);
        });
        Fingerprint::from_hash(&hasher.finalize())
    }

    /// Bytes of memory that this rope holds beyond the segments it shares: its own list of parts.
    pub fn own_size(&self) -> usize {
        self.parts.len() * std::mem::size_of::<Part>()
    }
}

/// Builds a rope field by field.
#[derive(Default)]
pub struct RopeBuilder {
    /// Finished parts of the enclosing messages, innermost last, each with the number of the field it will be.
    open: Vec<(u32, Vec<Part>, usize)>,
    parts: Vec<Part>,
    len: usize,
}

impl RopeBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends encoded fields.
    pub fn bytes(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.parts.push(Part::Bytes(bytes));
        }
    }

    /// Appends a rope's fields to the message being built.
    pub fn rope(&mut self, rope: &Rope) {
        self.len += rope.len;
        match &*rope.parts {
            [] => {}
            [only] => self.parts.push(only.clone()),
            _ => self.parts.push(Part::Rope(rope.clone())),
        }
    }

    /// Appends a rope as the length-delimited field `number`.
    pub fn field(&mut self, number: u32, rope: &Rope) {
        self.bytes(field_head(number, rope.len));
        self.rope(rope);
    }

    /// Begins the length-delimited field `number`; what follows is inside it.
    pub fn open(&mut self, number: u32) {
        let outer = std::mem::take(&mut self.parts);
        self.open.push((number, outer, std::mem::take(&mut self.len)));
    }

    /// Ends the innermost open field. False when none is open.
    #[must_use]
    pub fn close(&mut self) -> bool {
        let Some((number, outer, outer_len)) = self.open.pop() else { return false };
        let inner = std::mem::replace(&mut self.parts, outer);
        let inner_len = std::mem::replace(&mut self.len, outer_len);
        self.bytes(field_head(number, inner_len));
        self.len += inner_len;
        self.parts.extend(inner);
        true
    }

    /// The finished rope; `None` when a field is still open.
    pub fn finish(self) -> Option<Rope> {
        self.open.is_empty().then(|| Rope { parts: self.parts.into(), len: self.len })
    }
}

/// Tag (wire type 2) and length of a length-delimited field.
pub fn field_head(number: u32, len: usize) -> Bytes {
    let mut head = Vec::with_capacity(8);
    put_varint(&mut head, u64::from(number) << 3 | 2);
    put_varint(&mut head, len as u64);
    head.into()
}

/// Appends a varint.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message as a tree, and its ordinary encoding.
    #[derive(Clone, Debug)]
    enum Tree {
        Raw(Vec<u8>),
        Field(u32, Vec<Tree>),
    }

    fn encode(trees: &[Tree], out: &mut Vec<u8>) {
        for tree in trees {
            match tree {
                Tree::Raw(raw) => out.extend_from_slice(raw),
                Tree::Field(number, inner) => {
                    let mut body = Vec::new();
                    encode(inner, &mut body);
                    put_varint(out, u64::from(*number) << 3 | 2);
                    put_varint(out, body.len() as u64);
                    out.extend_from_slice(&body);
                }
            }
        }
    }

    /// Builds the same by open and close, or, when `shared`, by finished inner ropes.
    fn build(trees: &[Tree], builder: &mut RopeBuilder, shared: bool) {
        for tree in trees {
            match tree {
                Tree::Raw(raw) => builder.bytes(raw.clone().into()),
                Tree::Field(number, inner) if shared => {
                    let mut sub = RopeBuilder::new();
                    build(inner, &mut sub, shared);
                    builder.field(*number, &sub.finish().expect("all closed"));
                }
                Tree::Field(number, inner) => {
                    builder.open(*number);
                    build(inner, builder, shared);
                    assert!(builder.close());
                }
            }
        }
    }

    fn trees() -> impl Strategy<Value = Vec<Tree>> {
        let leaf = prop::collection::vec(any::<u8>(), 0..200).prop_map(Tree::Raw);
        let tree = leaf.prop_recursive(5, 60, 6, |inner| {
            (1u32..5000, prop::collection::vec(inner, 0..6)).prop_map(|(n, t)| Tree::Field(n, t))
        });
        prop::collection::vec(tree, 0..6)
    }

    proptest! {
        #[test]
        fn a_rope_is_the_ordinary_encoding(trees in trees(), shared: bool) {
            let mut want = Vec::new();
            encode(&trees, &mut want);
            let mut builder = RopeBuilder::new();
            build(&trees, &mut builder, shared);
            let rope = builder.finish().expect("all closed");
            prop_assert_eq!(rope.len(), want.len());
            prop_assert_eq!(rope.fingerprint(), Fingerprint::of(&want));
            prop_assert_eq!(&rope.to_bytes()[..], &want[..]);
        }
    }

    #[test]
    fn what_is_unchanged_stays_shared() {
        let (one, other) = (Bytes::from(vec![1; 200]), Bytes::from(vec![2; 300]));
        let mut builder = RopeBuilder::new();
        builder.field(1, &Rope::from_bytes(one.clone()));
        builder.field(2, &Rope::from_bytes(other.clone()));
        let rope = builder.finish().expect("all closed");
        let changed = [&[9][..], &one, &[8, 7], &other].concat();
        let cut = rope.share_with(&changed);
        assert_eq!(cut.concat(), changed);
        assert_eq!((cut[1].as_ptr(), cut[3].as_ptr(), cut.len()), (one.as_ptr(), other.as_ptr(), 4));
        // Out of order, or gone, they are not.
        let changed = [&other[..], &one[..]].concat();
        assert_eq!(rope.share_with(&changed).concat(), changed);
        assert_eq!(rope.share_with(b"x"), [&b"x"[..]]);
        assert!(rope.share_with(b"").is_empty());
    }

    #[test]
    fn an_open_field_is_not_finished() {
        let mut builder = RopeBuilder::new();
        builder.open(1);
        assert!(builder.finish().is_none());
        assert!(!RopeBuilder::new().close());
    }
}
