//! From a rule's text to its expression.

use regex::Regex;

use super::{Expr, Failure, Function, Loop, Op};

/// Parses a rule; the flag is set when it mentions `oldSelf`.
pub(super) fn parse(rule: &str) -> Result<(Expr, bool), Failure> {
    let tokens = Lexer { chars: rule.chars().collect(), at: 0 }.tokens()?;
    let is_transition = tokens.iter().any(|token| matches!(token, Token::Name(name) if name == "oldSelf"));
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let expression = parser.expression()?;
    match parser.peek() {
        None => Ok((expression, is_transition)),
        Some(token) => Err(unsupported(format!("unexpected {token:?}"))),
    }
}

fn unsupported(reason: impl Into<String>) -> Failure {
    Failure::Unsupported(reason.into())
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Int(i64),
    Double(f64),
    Text(String),
    Name(String),
    Sign(&'static str),
}

/// Longer signs first, so that `<=` is not read as `<`.
const SIGNS: [&str; 23] = [
    "||", "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "!", "?", ":", "(", ")", "[", "]", "{", "}", ".", ",",
    "%",
];

struct Lexer {
    chars: Vec<char>,
    at: usize,
}

impl Lexer {
    fn tokens(mut self) -> Result<Vec<Token>, Failure> {
        let mut tokens = Vec::new();
        while let Some(&first) = self.chars.get(self.at) {
            if first.is_whitespace() {
                self.at += 1;
            } else if first.is_ascii_digit() {
                tokens.push(self.number()?);
            } else if matches!(first, '"' | '\'') {
                tokens.push(self.text(false)?);
            } else if first == 'r' && matches!(self.chars.get(self.at + 1), Some('"' | '\'')) {
                self.at += 1;
                tokens.push(self.text(true)?);
            } else if first.is_ascii_alphabetic() || first == '_' {
                tokens.push(Token::Name(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')));
            } else {
                tokens.push(self.sign()?);
            }
        }
        Ok(tokens)
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> String {
        let taken: String = self.chars[self.at..].iter().take_while(|c| keep(**c)).collect();
        self.at += taken.chars().count();
        taken
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(at, c)| self.chars.get(self.at + at) == Some(&c))
    }

    fn sign(&mut self) -> Result<Token, Failure> {
        let sign = SIGNS.into_iter().find(|sign| self.starts_with(sign));
        let sign = sign.ok_or_else(|| unsupported(format!("unexpected {:?}", self.chars[self.at])))?;
        self.at += sign.len();
        Ok(Token::Sign(sign))
    }

    fn number(&mut self) -> Result<Token, Failure> {
        let mut digits = self.take_while(|c| c.is_ascii_digit());
        let fraction =
            self.chars.get(self.at) == Some(&'.') && self.chars.get(self.at + 1).is_some_and(char::is_ascii_digit);
        if fraction {
            self.at += 1;
            digits = format!("{digits}.{}", self.take_while(|c| c.is_ascii_digit()));
            return digits.parse().map(Token::Double).map_err(|_| unsupported(digits));
        }
        digits.parse().map(Token::Int).map_err(|_| unsupported(digits))
    }

    fn text(&mut self, raw: bool) -> Result<Token, Failure> {
        let quote = if self.chars[self.at] == '"' { ["\"\"\"", "\""] } else { ["'''", "'"] };
        let quote = if self.starts_with(quote[0]) { quote[0] } else { quote[1] };
        self.at += quote.len();
        let mut text = String::new();
        loop {
            if self.starts_with(quote) {
                self.at += quote.len();
                return Ok(Token::Text(text));
            }
            let Some(&c) = self.chars.get(self.at) else {
                return Err(unsupported("a string has no end"));
            };
            self.at += 1;
            if c == '\\' && !raw { text.push(self.escape()?) } else { text.push(c) }
        }
    }

    fn escape(&mut self) -> Result<char, Failure> {
        let Some(&c) = self.chars.get(self.at) else {
            return Err(unsupported("a string has no end"));
        };
        self.at += 1;
        let width = match c {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'f' => return Ok('\u{c}'),
            'v' => return Ok('\u{b}'),
            '\\' | '\'' | '"' | '`' | '?' => return Ok(c),
            'x' | 'X' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err(unsupported(format!("escape \\{c}"))),
        };
        let digits: String = self.chars[self.at..].iter().take(width).collect();
        self.at += digits.chars().count();
        let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == width).and_then(char::from_u32);
        code.ok_or_else(|| unsupported(format!("escape \\{c}{digits}")))
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, sign: &'static str) -> bool {
        let found = self.peek() == Some(&Token::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), Failure> {
        if self.eat(sign) { Ok(()) } else { Err(unsupported(format!("`{sign}` expected, found {:?}", self.peek()))) }
    }

    fn expression(&mut self) -> Result<Expr, Failure> {
        self.depth += 1;
        if self.depth > 60 {
            return Err(unsupported("nested too deep"));
        }
        let condition = self.binary(0)?;
        let expression = if self.eat("?") {
            let yes = self.expression()?;
            self.expect(":")?;
            let no = self.expression()?;
            Expr::If(Box::new(condition), Box::new(yes), Box::new(no))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expression)
    }

    /// Binary operators from `level` on, which bind stronger than those below it.
    fn binary(&mut self, level: usize) -> Result<Expr, Failure> {
        if level > 4 {
            return self.unary();
        }
        let mut left = self.binary(level + 1)?;
        while let Some(op) = self.operator(level) {
            self.at += 1;
            let right = self.binary(level + 1)?;
            left = Expr::Binary(op, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn operator(&self, level: usize) -> Option<Op> {
        let sign = match self.peek()? {
            Token::Sign(sign) => *sign,
            Token::Name(name) if name == "in" => "in",
            _ => return None,
        };
        let (op, at) = match sign {
            "||" => (Op::Or, 0),
            "&&" => (Op::And, 1),
            "==" => (Op::Equal, 2),
            "!=" => (Op::NotEqual, 2),
            "<" => (Op::Less, 2),
            "<=" => (Op::LessOrEqual, 2),
            ">" => (Op::Greater, 2),
            ">=" => (Op::GreaterOrEqual, 2),
            "in" => (Op::In, 2),
            "+" => (Op::Add, 3),
            "-" => (Op::Subtract, 3),
            "*" => (Op::Multiply, 4),
            _ => return None,
        };
        (at == level).then_some(op)
    }

    fn unary(&mut self) -> Result<Expr, Failure> {
        if self.eat("!") {
            Ok(Expr::Not(Box::new(self.unary()?)))
        } else if self.eat("-") {
            Ok(Expr::Negate(Box::new(self.unary()?)))
        } else {
            self.member()
        }
    }

    fn member(&mut self) -> Result<Expr, Failure> {
        let mut expression = self.primary()?;
        loop {
            if self.eat(".") {
                let name = self.name()?;
                expression = if self.eat("(") {
                    self.method(expression, &name)?
                } else {
                    Expr::Select(Box::new(expression), unescape(&name))
                };
            } else if self.eat("[") {
                let index = self.expression()?;
                self.expect("]")?;
                expression = Expr::Index(Box::new(expression), Box::new(index));
            } else {
                return Ok(expression);
            }
        }
    }

    fn primary(&mut self) -> Result<Expr, Failure> {
        let token = self.peek().cloned().ok_or_else(|| unsupported("the rule ends too early"))?;
        self.at += 1;
        match token {
            Token::Int(value) => Ok(Expr::Int(value)),
            Token::Double(value) => Ok(Expr::Double(value)),
            Token::Text(text) => Ok(Expr::Text(text)),
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => Ok(Expr::List(self.arguments("]")?)),
            Token::Sign("{") => self.expect("}").map(|()| Expr::EmptyMap),
            Token::Name(name) => match name.as_str() {
                "true" => Ok(Expr::Bool(true)),
                "false" => Ok(Expr::Bool(false)),
                "null" => Ok(Expr::Null),
                _ if self.eat("(") => self.function(&name),
                _ => Ok(Expr::Name(name)),
            },
            Token::Sign(sign) => Err(unsupported(format!("unexpected `{sign}`"))),
        }
    }

    fn name(&mut self) -> Result<String, Failure> {
        match self.peek().cloned() {
            Some(Token::Name(name)) => {
                self.at += 1;
                Ok(name)
            }
            other => Err(unsupported(format!("a name expected, found {other:?}"))),
        }
    }

    /// Comma-separated expressions up to the closing sign.
    fn arguments(&mut self, close: &'static str) -> Result<Vec<Expr>, Failure> {
        let mut arguments = Vec::new();
        while !self.eat(close) {
            if !arguments.is_empty() {
                self.expect(",")?;
            }
            arguments.push(self.expression()?);
        }
        Ok(arguments)
    }

    fn function(&mut self, name: &str) -> Result<Expr, Failure> {
        let mut arguments = self.arguments(")")?;
        if name == "has" {
            return match (arguments.pop(), arguments.is_empty()) {
                (Some(Expr::Select(of, field)), true) => Ok(Expr::Has(of, field)),
                _ => Err(unsupported("has() of something that is no field")),
            };
        }
        let function = match (name, arguments.len()) {
            ("size", 1) => Function::Size,
            ("duration", 1) => Function::Duration,
            ("int", 1) => Function::Int,
            ("isIP", 1) => Function::IsIp,
            ("isURL", 1) => Function::IsUrl,
            ("url", 1) => Function::Url,
            (_, count) => {
                return Err(unsupported(format!("function {name} with {count} arguments")));
            }
        };
        Ok(Expr::Call(function, arguments))
    }

    fn method(&mut self, over: Expr, name: &str) -> Result<Expr, Failure> {
        let kind = match name {
            "all" => Some(Loop::All),
            "exists" => Some(Loop::Exists),
            "exists_one" | "existsOne" => Some(Loop::ExistsOne),
            "filter" => Some(Loop::Filter),
            "map" => Some(Loop::Map),
            _ => None,
        };
        if let Some(kind) = kind {
            let name = self.name()?;
            self.expect(",")?;
            let body = Box::new(self.expression()?);
            self.expect(")")?;
            return Ok(Expr::Loop { kind, over: Box::new(over), name, body });
        }
        let mut arguments = self.arguments(")")?;
        if name == "matches" {
            return match arguments.pop() {
                Some(Expr::Text(pattern)) if arguments.is_empty() => {
                    let regex = Regex::new(&pattern).map_err(|error| unsupported(error.to_string()))?;
                    Ok(Expr::Matches(Box::new(over), Box::new(regex)))
                }
                _ => Err(unsupported("matches() with a computed pattern")),
            };
        }
        let function = match (name, arguments.len()) {
            ("size", 0) => Function::Size,
            ("contains", 1) => Function::Contains,
            ("startsWith", 1) => Function::StartsWith,
            ("endsWith", 1) => Function::EndsWith,
            ("substring", 1 | 2) => Function::Substring,
            ("split", 1) => Function::Split,
            ("getScheme", 0) => Function::Scheme,
            (_, count) => return Err(unsupported(format!("method {name} with {count} arguments"))),
        };
        arguments.insert(0, over);
        Ok(Expr::Call(function, arguments))
    }
}

/// Kubernetes writes a field whose name is a word of CEL as `__namespace__`.
fn unescape(name: &str) -> String {
    name.strip_prefix("__").and_then(|name| name.strip_suffix("__")).unwrap_or(name).to_owned()
}
