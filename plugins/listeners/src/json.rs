//! A small JSON reader for access log formats: a guest does without a JSON crate.

use trysail_sdk::prost_types::{ListValue, Struct, Value, value::Kind};

/// Formats nest a few levels at most; deeper input is refused so that it cannot exhaust the stack.
const MAX_DEPTH: u32 = 64;

/// An object; none when empty or malformed.
pub fn parse_object(text: &str) -> Option<Struct> {
    if text.is_empty() {
        return None;
    }
    let mut reader = Reader { rest: text };
    let value = reader.value(MAX_DEPTH)?;
    reader.space();
    match (value.kind, reader.rest.is_empty()) {
        (Some(Kind::StructValue(object)), true) => Some(object),
        _ => None,
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, token: &str) -> bool {
        self.space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        self.space();
        let kind = match self.rest.as_bytes().first()? {
            b'{' => Kind::StructValue(self.object(depth)?),
            b'[' => Kind::ListValue(self.list(depth)?),
            b'"' => Kind::StringValue(self.string()?),
            b't' => self.take("true").then_some(Kind::BoolValue(true))?,
            b'f' => self.take("false").then_some(Kind::BoolValue(false))?,
            b'n' => self.take("null").then_some(Kind::NullValue(0))?,
            _ => Kind::NumberValue(self.number()?),
        };
        Some(Value { kind: Some(kind) })
    }

    fn object(&mut self, depth: u32) -> Option<Struct> {
        let mut object = Struct::default();
        self.take("{").then_some(())?;
        if self.take("}") {
            return Some(object);
        }
        loop {
            self.space();
            let name = self.string()?;
            self.take(":").then_some(())?;
            object.fields.insert(name, self.value(depth)?);
            if self.take("}") {
                return Some(object);
            }
            self.take(",").then_some(())?;
        }
    }

    fn list(&mut self, depth: u32) -> Option<ListValue> {
        let mut values = Vec::new();
        self.take("[").then_some(())?;
        if self.take("]") {
            return Some(ListValue { values });
        }
        loop {
            values.push(self.value(depth)?);
            if self.take("]") {
                return Some(ListValue { values });
            }
            self.take(",").then_some(())?;
        }
    }

    fn string(&mut self) -> Option<String> {
        self.take("\"").then_some(())?;
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(out);
                }
                '\\' => match chars.next()?.1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'b' => out.push('\u{8}'),
                    'f' => out.push('\u{c}'),
                    'u' => {
                        let mut hex = || -> Option<u32> {
                            (0..4).try_fold(0, |n, _| Some(n * 16 + chars.next()?.1.to_digit(16)?))
                        };
                        let mut code = hex()?;
                        if (0xd800..0xdc00).contains(&code) {
                            (chars.next()?.1 == '\\' && chars.next()?.1 == 'u').then_some(())?;
                            let mut hex = || -> Option<u32> {
                                (0..4).try_fold(0, |n, _| Some(n * 16 + chars.next()?.1.to_digit(16)?))
                            };
                            code = 0x10000 + ((code - 0xd800) << 10) + hex()?.checked_sub(0xdc00)?;
                        }
                        out.push(char::from_u32(code)?);
                    }
                    c @ ('"' | '\\' | '/') => out.push(c),
                    _ => return None,
                },
                c => out.push(c),
            }
        }
        None
    }

    fn number(&mut self) -> Option<f64> {
        let end = self.rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        number.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_objects_only() {
        let object = parse_object(r#" {"a": "%REQ(:PATH)%", "b": {"c": [1, true, null]}, "d": "\u00e4\n"} "#)
            .expect("an object");
        assert_eq!(object.fields["a"].kind, Some(Kind::StringValue("%REQ(:PATH)%".into())));
        assert_eq!(object.fields["d"].kind, Some(Kind::StringValue("ä\n".into())));
        for bad in ["", "[]", "{", "{\"a\" 1}", "{\"a\":1} x", "nonsense"] {
            assert!(parse_object(bad).is_none(), "{bad}");
        }
    }
}
