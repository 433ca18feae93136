//! From text to documents: multi-document YAML and JSON, read as Kubernetes reads them.
//!
//! ```text
//!  text --split at `---`--> chunks --YAML events or JSON--> values, one result a document
//! ```
//!
//! **Invariant:** a chunk that cannot be read says nothing of its neighbours, so that one typing error
//! does not take the rest of a file with it. Nothing here panics, and what one document may cost is
//! bounded ([`MAX_DEPTH`], [`MAX_COPIED`]): input comes from editors.
//!
//! Plain scalars are resolved as `sigs.k8s.io/yaml` does, which is YAML 1.1 where it differs from 1.2:
//! `on`, `yes`, `y` are booleans and `0644` is octal. An API server would see them so; hence an unquoted
//! `y` where a string must stand is an error of the schema here too, instead of working in a folder and
//! failing in a cluster. Unlike there, a duplicate key is a mistake, as in kubectl's strict mode: nobody
//! knows which of the two was meant.

mod json;
mod scalar;
mod yaml;

use serde_json::Value;

/// Deepest nesting of a document.
pub const MAX_DEPTH: usize = 100;

/// Bytes, roughly, that anchors and aliases of one document may copy; more is taken for a bomb.
pub const MAX_COPIED: usize = 4 << 20;

/// A document that could be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Index within the file, from 1; documents without content do not count.
    pub index: usize,
    /// Line of the file where it starts, from 1.
    pub line: usize,
    /// What it holds; never null.
    pub value: Value,
    /// Keys that stand twice in a mapping, in which case the last one is taken. A mistake, though the document can be
    /// read; kept apart from syntax errors so that the object it spoils can be named.
    pub duplicates: Vec<Duplicate>,
}

/// A key that stands twice in a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The key.
    pub key: String,
    /// Line of the file where it stands again; unset in JSON.
    pub line: Option<usize>,
}

/// A document that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct SyntaxError {
    /// Index within the file, from 1.
    pub index: usize,
    /// Line of the file, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub reason: String,
}

/// A value of a chunk, with lines counted from the chunk's first.
#[derive(Debug)]
struct Read {
    line: usize,
    value: Value,
    duplicates: Vec<Duplicate>,
}

/// What is wrong inside one chunk, at a line counted from the chunk's first.
#[derive(Debug)]
struct ChunkError {
    line: usize,
    column: usize,
    reason: String,
}

/// The documents of a text, in order; a document of comments alone is left out.
///
/// Accepts any text at all.
pub fn parse_documents(text: &str) -> Vec<Result<Document, SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    for (first_line, chunk) in split(text) {
        let mut values = Vec::new();
        let looks_like_json = chunk.trim_start().starts_with('{') || chunk.trim_start().starts_with('[');
        // YAML's flow style starts with the same characters, so JSON is only the first try.
        let failed = if looks_like_json && json::parse(&chunk, &mut values).is_ok() {
            None
        } else {
            values.clear();
            yaml::parse(&chunk, &mut values).err()
        };
        for Read { line, value, mut duplicates } in values {
            if value.is_null() {
                continue;
            }
            for line in duplicates.iter_mut().filter_map(|duplicate| duplicate.line.as_mut()) {
                *line += first_line - 1;
            }
            let index = documents.len() + 1;
            documents.push(Ok(Document { index, line: first_line + line - 1, value, duplicates }));
        }
        if let Some(ChunkError { line, column, reason }) = failed {
            let index = documents.len() + 1;
            documents.push(Err(SyntaxError { index, line: first_line + line - 1, column, reason }));
        }
    }
    documents
}

/// Cuts a text at its `---` lines: the line where each chunk starts, and the chunk.
///
/// A line that starts with `---` can stand nowhere else: inside a block scalar it would be indented.
/// Directives (`%YAML 1.2`) stay with the document that they stand before.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut chunks = Vec::new();
    let (mut start, mut current) = (1, String::new());
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let rest = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if rest.is_some() && !is_preamble(&current) {
            push(&mut chunks, start, std::mem::take(&mut current));
            start = number;
        } else if rest.is_some() && !current.lines().any(|line| line.starts_with('%')) {
            current.clear();
            start = number;
        }
        current.push_str(line);
    }
    push(&mut chunks, start, current);
    chunks
}

/// True when nothing stands here but comments, directives and blank lines.
fn is_preamble(chunk: &str) -> bool {
    chunk.lines().all(|line| {
        let line = line.trim_end();
        line.is_empty() || line.starts_with('%') || line.trim_start().starts_with('#')
    })
}

fn push(chunks: &mut Vec<(usize, String)>, start: usize, chunk: String) {
    let empty = chunk.lines().enumerate().all(|(at, line)| {
        let line = if at == 0 { line.strip_prefix("---").unwrap_or(line) } else { line };
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "..."
    });
    if !empty {
        chunks.push((start, chunk));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn values(text: &str) -> Vec<Value> {
        parse_documents(text).into_iter().map(|document| document.expect("reads").value).collect()
    }

    fn error(text: &str) -> SyntaxError {
        parse_documents(text).into_iter().find_map(Result::err).expect("is refused")
    }

    #[test]
    fn documents_are_counted_without_empty_ones() {
        let text = "# licence\n---\na: 1\n---\n# nothing\n---\n\n--- # why\nb: 2\n---\n";
        let found: Vec<_> = parse_documents(text).into_iter().map(|d| d.expect("reads")).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].index, found[0].line, &found[0].value), (1, 3, &json!({"a": 1})));
        assert_eq!((found[1].index, &found[1].value), (2, &json!({"b": 2})));
    }

    #[test]
    fn a_broken_document_leaves_its_neighbours() {
        let found = parse_documents("a: 1\n---\nb: [1\n---\nc: 3\n");
        assert_eq!(found[0].as_ref().expect("reads").value, json!({"a": 1}));
        let error = found[1].as_ref().expect_err("is cut");
        assert_eq!(error.index, 2);
        assert!((2..=4).contains(&error.line), "{error}");
        assert_eq!(found[2].as_ref().expect("reads").value, json!({"c": 3}));
        assert_eq!(found[2].as_ref().expect("reads").index, 3);
    }

    #[test]
    fn json_reads_alone_and_in_rows() {
        assert_eq!(values("{\"a\": 1}"), [json!({"a": 1})]);
        assert_eq!(values("{\"a\": 1}\n{\"b\": [true, null]}\n"), [json!({"a": 1}), json!({"b": [true, null]})]);
        assert_eq!(values("{a: b}"), [json!({"a": "b"})]);
        let twice = parse_documents("{\"a\": 1, \"a\": 2}").remove(0).expect("reads");
        assert_eq!(twice.duplicates, [Duplicate { key: "a".to_owned(), line: None }]);
        assert_eq!(values("{\n\t\"a\": 1\n}"), [json!({"a": 1})]);
    }

    #[test]
    fn scalars_resolve_as_in_kubernetes() {
        let text = "a: yes\nb: Off\nc: 0644\nd: '0644'\ne: 1_000\nf: 1.0\ng: 1.5\nh: ~\ni: 2006-01-02\nj: \"on\"\n\
                    k: 0x1F\nl: 08\nm: +5\nneg: -0\no: 12e2\np: 1.2.3.4\nq: !!str 12\nr: |\n  on\ns: .5\nt: 10s\n";
        let want = json!({"a": true, "b": false, "c": 420, "d": "0644", "e": 1000, "f": 1, "g": 1.5, "h": null,
            "i": "2006-01-02", "j": "on", "k": 31, "l": 8, "m": 5, "neg": 0, "o": 1200, "p": "1.2.3.4", "q": "12",
            "r": "on\n", "s": 0.5, "t": "10s"});
        assert_eq!(values(text), [want]);
        assert_eq!(values("on: 1\n5: x\n"), [json!({"true": 1, "5": "x"})]);
    }

    #[test]
    fn anchors_merge_and_are_bounded() {
        let text = "base: &b {x: 1, y2: 2}\nuse: *b\nmore: {<<: *b, x: 3}\nall: {<<: [*b, {z: 4}]}\n";
        let want = json!({"base": {"x": 1, "y2": 2}, "use": {"x": 1, "y2": 2}, "more": {"x": 3, "y2": 2},
            "all": {"x": 1, "y2": 2, "z": 4}});
        assert_eq!(values(text), [want]);
        let mut bomb = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for level in 1..12 {
            let of = vec![format!("*a{}", level - 1); 9].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{of}]\n"));
        }
        assert!(error(&bomb).reason.contains("alias"), "{}", error(&bomb));
        assert!(error(&"[".repeat(100_000)).reason.contains("limit"));
        assert!(error(&"[a, ".repeat(200)).reason.contains("nested"));
        assert!(error(&"- ".repeat(5_000)).reason.contains("nested"));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let found = parse_documents("a: 1\n---\nb: 1\nc: 2\nb: 3\n").remove(1).expect("reads");
        assert_eq!(found.duplicates, [Duplicate { key: "b".to_owned(), line: Some(5) }]);
        assert_eq!(found.value, json!({"b": 3, "c": 2}));
        assert!(error("a: &x 1\nb: *y\n").line == 2);
        assert!(error("a: .nan\n").reason.contains("number"));
        assert!(error("{a: b}: c\n").reason.contains("key"));
        assert!(error("a:\n\t- b\n").line >= 1);
    }

    #[test]
    fn directives_and_ends_stay_with_their_document() {
        assert_eq!(values("%YAML 1.2\n---\na: 1\n...\n---\nb: 2\n"), [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(values("a: |\n  ---\n  x\n"), [json!({"a": "---\nx\n"})]);
        assert_eq!(values("\u{feff}a: 1\r\n---\r\nb: 2\r\n"), [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(values(""), Vec::<Value>::new());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[-a-c:\\[\\]{}&*!|>'\"#%,?\\n\\t 0-9.~@`<]{0,80}") {
            parse_documents(&text);
        }

        #[test]
        fn no_text_at_all_panics(text in "\\PC*") {
            parse_documents(&text);
        }
    }
}
