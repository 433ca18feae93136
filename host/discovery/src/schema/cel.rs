//! CEL, as far as the rules of the embedded CRDs use it.
//!
//! ```text
//!  rule --parse--> Program --eval over the JSON value--> true | false | error
//! ```
//!
//! Own code instead of a CEL library, because the language here is a closed set: the rules of the embedded
//! CRDs, all of which a test parses. The library that exists brings a generated parser and time zones, and
//! copies every value into types of its own for each rule; this one walks the JSON as it is. And it tells
//! apart the two kinds of failure that matter here:
//!
//! - [`Failure::Value`]: the value made the rule fail (no such key, not a number, not a URL). An API server
//!   refuses the object then.
//! - [`Failure::Unsupported`]: the rule is beyond this module. It never refuses anything.

mod eval;
mod functions;
mod parse;

use regex::Regex;
use serde_json::Value;

/// A parsed rule.
#[derive(Debug)]
pub(crate) struct Program {
    expression: Expr,
    /// True for rules about the change of a value, which say nothing of a value alone.
    pub(crate) is_transition: bool,
}

/// Why a rule gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Because of the value.
    Value(String),
    /// Because of the rule.
    Unsupported(String),
}

impl Program {
    /// Parses a rule.
    pub(crate) fn parse(rule: &str) -> Result<Self, Failure> {
        let (expression, is_transition) = parse::parse(rule)?;
        Ok(Program { expression, is_transition })
    }

    /// Applies the rule to a value.
    pub(crate) fn eval(&self, value: &Value) -> Result<bool, Failure> {
        eval::eval(&self.expression, value)
    }
}

#[derive(Debug)]
enum Expr {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
    Name(String),
    /// `a.b`
    Select(Box<Expr>, String),
    /// `has(a.b)`
    Has(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    List(Vec<Expr>),
    /// `{}`; maps with entries are not used by any rule.
    EmptyMap,
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Binary(Op, Box<Expr>, Box<Expr>),
    If(Box<Expr>, Box<Expr>, Box<Expr>),
    /// A function; a method has its receiver as the first argument.
    Call(Function, Vec<Expr>),
    /// `text.matches('literal')`
    Matches(Box<Expr>, Box<Regex>),
    /// `list.all(name, body)` and the like.
    Loop {
        kind: Loop,
        over: Box<Expr>,
        name: String,
        body: Box<Expr>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loop {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Substring,
    Split,
    Duration,
    Int,
    IsIp,
    IsUrl,
    Url,
    Scheme,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn eval(rule: &str, value: Value) -> Result<bool, Failure> {
        Program::parse(rule)?.eval(&value)
    }

    fn holds(rule: &str, value: Value) -> bool {
        eval(rule, value).unwrap_or_else(|failure| panic!("{rule}: {failure:?}"))
    }

    #[test]
    fn operators_bind_as_they_should() {
        for rule in [
            "1 + 2 * 3 == 7 && !false",
            "false || true && true",
            "(true ? 1 : 0) + (false ? 1 : 0) <= 1",
            "-1 < 0 && 2 - 1 - 1 == 0",
            "1 in [1, 2] && !('x' in ['y'])",
            "'a' + \"b\" == 'ab'",
            "1 == 1.0 && 0.5 < 1",
            "{}.size() == 0 && [].size() == 0",
            "null == null",
            "[1, 2].map(x, x + 1) == [2, 3]",
        ] {
            assert!(holds(rule, json!(null)), "{rule}");
        }
    }

    #[test]
    fn strings_have_their_escapes() {
        assert!(holds(r#"self.matches('^a\\.b$')"#, json!("a.b")));
        assert!(!holds(r#"self.matches('^a\\.b$')"#, json!("axb")));
        assert!(holds(r#"self.matches(r"""^\d"$""")"#, json!("1\"")));
        assert!(holds(r"self == 'tab\t\u00e4\x41'", json!("tab\täA")));
    }

    #[test]
    fn fields_are_looked_up() {
        let value = json!({"a": {"b": [1, {"namespace": "x"}]}, "size": 1});
        assert!(holds("has(self.a.b) && !has(self.c) && self.a.b[0] == 1", value.clone()));
        assert!(holds("self.a.b[1].__namespace__ == 'x'", value.clone()));
        assert!(holds("'a' in self && self.size() == 2 && self.size == 1", value.clone()));
        assert!(matches!(eval("self.c == 1", value.clone()), Err(Failure::Value(why)) if why == "no such key: c"));
        // An error is absorbed by an answer that does not need it, on either side.
        assert!(holds("self.c == 1 || true", value.clone()));
        assert!(!holds("false && self.c == 1", value.clone()));
        assert!(!holds("self.c == 1 && false", value));
    }

    #[test]
    fn loops() {
        let list = json!([{"n": 1}, {"n": 2}, {"n": 2}]);
        assert!(holds("self.all(x, x.n > 0) && self.exists(x, x.n == 2)", list.clone()));
        assert!(holds("self.exists_one(x, x.n == 1) && !self.exists_one(x, x.n == 2)", list.clone()));
        assert!(holds("self.filter(x, x.n == 2).size() == 2", list));
        assert!(holds("self.all(key, key.size() != 0)", json!({"a": 1})));
    }

    #[test]
    fn functions_of_kubernetes() {
        assert!(holds("duration(self) >= duration('1ms')", json!("1h2m3.5s")));
        assert!(!holds("duration(self) >= duration('1ms')", json!("999us")));
        assert!(matches!(eval("duration(self) > duration('0s')", json!("5")), Err(Failure::Value(_))));
        assert!(matches!(eval("0 < int(self)", json!("x")), Err(Failure::Value(_))));
        assert!(holds("isIP(self)", json!("::1")) && !holds("isIP(self)", json!("a")));
        assert!(holds("url(self).getScheme() == 'https'", json!("HTTPS://a:1/b%20c?d#e")));
        for wrong in ["", "a b", "#%blah$#@", "http://a b/", "http://a/%zz", "//\u{7}", "http://a:x/"] {
            assert!(!holds("isURL(self)", json!(wrong)), "{wrong}");
        }
        assert!(holds("isURL(self)", json!("/a")));
        assert!(holds(
            "self.split('/')[0].size() == 2 && self.substring(3) == 'cd' && self.substring(0, 1) == 'a'",
            json!("ab/cd")
        ));
        assert!(matches!(eval("self.substring(7, 8) == ''", json!("short")), Err(Failure::Value(_))));
    }

    #[test]
    fn what_is_beyond_it_says_so() {
        for rule in
            ["self.foo(1)", "self.", "authorizer.path('x')", "1 +", "{'a': 1}.size() == 1", "self.matches(self)"]
        {
            assert!(matches!(eval(rule, json!("x")), Err(Failure::Unsupported(_))), "{rule}");
        }
        assert!(Program::parse("self == oldSelf").expect("parses").is_transition);
    }
}
