//! Evaluation over JSON, without copying it.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::{Expr, Failure, Function, Loop, Op, functions};

/// A value during evaluation.
#[derive(Clone, Debug)]
pub(super) enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'a, str>),
    /// A list or a map of the object.
    Json(&'a Value),
    /// A list that the rule made.
    List(Vec<Val<'a>>),
    EmptyMap,
    /// Nanoseconds.
    Duration(i128),
    /// A URL, by its scheme.
    Url(String),
}

impl<'a> From<&'a Value> for Val<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Val::Null,
            Value::Bool(flag) => Val::Bool(*flag),
            Value::Number(number) => match number.as_i64() {
                Some(value) => Val::Int(value),
                None => Val::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Val::Text(Cow::Borrowed(text)),
            Value::Array(_) | Value::Object(_) => Val::Json(value),
        }
    }
}

/// Names in scope: `self`, and the variables of loops around.
struct Scope<'s, 'a> {
    name: &'s str,
    value: Val<'a>,
    outer: Option<&'s Scope<'s, 'a>>,
}

type Outcome<'a> = Result<Val<'a>, Failure>;

pub(super) fn eval(expression: &Expr, value: &Value) -> Result<bool, Failure> {
    let scope = Scope { name: "self", value: value.into(), outer: None };
    flag(run(expression, &scope)?)
}

fn flag(value: Val<'_>) -> Result<bool, Failure> {
    match value {
        Val::Bool(flag) => Ok(flag),
        _ => Err(overload("a condition")),
    }
}

pub(super) fn overload(what: &str) -> Failure {
    Failure::Unsupported(format!("no such overload: {what}"))
}

fn run<'a>(expression: &'a Expr, scope: &Scope<'_, 'a>) -> Outcome<'a> {
    match expression {
        Expr::Null => Ok(Val::Null),
        Expr::Bool(flag) => Ok(Val::Bool(*flag)),
        Expr::Int(value) => Ok(Val::Int(*value)),
        Expr::Double(value) => Ok(Val::Double(*value)),
        Expr::Text(text) => Ok(Val::Text(Cow::Borrowed(text))),
        Expr::EmptyMap => Ok(Val::EmptyMap),
        Expr::Name(name) => lookup(name, scope),
        Expr::Select(of, name) => {
            let of = run(of, scope)?;
            field(&of, name)?.ok_or_else(|| Failure::Value(format!("no such key: {name}")))
        }
        Expr::Has(of, name) => Ok(Val::Bool(field(&run(of, scope)?, name)?.is_some())),
        Expr::Index(of, index) => element(&run(of, scope)?, &run(index, scope)?),
        Expr::List(items) => Ok(Val::List(items.iter().map(|item| run(item, scope)).collect::<Result<_, _>>()?)),
        Expr::Not(inner) => Ok(Val::Bool(!flag(run(inner, scope)?)?)),
        Expr::Negate(inner) => match run(inner, scope)? {
            Val::Int(value) => Ok(Val::Int(value.wrapping_neg())),
            Val::Double(value) => Ok(Val::Double(-value)),
            _ => Err(overload("-")),
        },
        Expr::Binary(Op::Or, left, right) => either(true, left, right, scope),
        Expr::Binary(Op::And, left, right) => either(false, left, right, scope),
        Expr::Binary(op, left, right) => binary(*op, &run(left, scope)?, &run(right, scope)?),
        Expr::If(condition, yes, no) => {
            if flag(run(condition, scope)?)? {
                run(yes, scope)
            } else {
                run(no, scope)
            }
        }
        Expr::Matches(text, regex) => match run(text, scope)? {
            Val::Text(text) => Ok(Val::Bool(regex.is_match(&text))),
            _ => Err(overload("matches")),
        },
        Expr::Call(function, arguments) => call(*function, arguments, scope),
        Expr::Loop { kind, over, name, body } => iterate(*kind, &run(over, scope)?, name, body, scope),
    }
}

fn lookup<'a>(name: &str, scope: &Scope<'_, 'a>) -> Outcome<'a> {
    let mut scope = Some(scope);
    while let Some(Scope { name: known, value, outer }) = scope {
        if *known == name {
            return Ok(value.clone());
        }
        scope = *outer;
    }
    Err(Failure::Unsupported(format!("unknown name: {name}")))
}

fn field<'a>(of: &Val<'a>, name: &str) -> Result<Option<Val<'a>>, Failure> {
    match of {
        Val::Json(Value::Object(map)) => Ok(map.get(name).map(Val::from)),
        Val::EmptyMap => Ok(None),
        _ => Err(overload("field of something that is no map")),
    }
}

fn element<'a>(of: &Val<'a>, index: &Val<'a>) -> Outcome<'a> {
    match (of, index) {
        (Val::Json(Value::Object(_)) | Val::EmptyMap, Val::Text(name)) => {
            field(of, name)?.ok_or_else(|| Failure::Value(format!("no such key: {name}")))
        }
        (_, Val::Int(at)) => {
            let items = items(of)?;
            let item = usize::try_from(*at).ok().and_then(|at| items.into_iter().nth(at));
            item.ok_or_else(|| Failure::Value(format!("index out of bounds: {at}")))
        }
        _ => Err(overload("[]")),
    }
}

/// Items of a list, keys of a map.
fn items<'a>(of: &Val<'a>) -> Result<Vec<Val<'a>>, Failure> {
    match of {
        Val::Json(Value::Array(items)) => Ok(items.iter().map(Val::from).collect()),
        Val::Json(Value::Object(map)) => Ok(map.keys().map(|key| Val::Text(Cow::Borrowed(key.as_str()))).collect()),
        Val::List(items) => Ok(items.clone()),
        Val::EmptyMap => Ok(Vec::new()),
        _ => Err(overload("loop over something that is no list or map")),
    }
}

/// `||` and `&&`: the deciding value wins over an error on the other side.
fn either<'a>(deciding: bool, left: &'a Expr, right: &'a Expr, scope: &Scope<'_, 'a>) -> Outcome<'a> {
    let first = run(left, scope).and_then(flag);
    if first == Ok(deciding) {
        return Ok(Val::Bool(deciding));
    }
    let second = run(right, scope).and_then(flag);
    if second == Ok(deciding) {
        return Ok(Val::Bool(deciding));
    }
    first?;
    second.map(Val::Bool)
}

fn binary<'a>(op: Op, left: &Val<'a>, right: &Val<'a>) -> Outcome<'a> {
    match op {
        Op::Equal => Ok(Val::Bool(equal(left, right))),
        Op::NotEqual => Ok(Val::Bool(!equal(left, right))),
        Op::Less => compare(left, right, Ordering::is_lt),
        Op::LessOrEqual => compare(left, right, Ordering::is_le),
        Op::Greater => compare(left, right, Ordering::is_gt),
        Op::GreaterOrEqual => compare(left, right, Ordering::is_ge),
        Op::In => Ok(Val::Bool(items(right)?.iter().any(|item| equal(left, item)))),
        Op::Add | Op::Subtract | Op::Multiply => arithmetic(op, left, right),
        Op::Or | Op::And => Err(overload("a lazy operator")),
    }
}

fn equal(left: &Val<'_>, right: &Val<'_>) -> bool {
    match (left, right) {
        (Val::Null, Val::Null) => true,
        (Val::Bool(left), Val::Bool(right)) => left == right,
        (Val::Text(left), Val::Text(right)) => left == right,
        (Val::Duration(left), Val::Duration(right)) => left == right,
        (Val::Json(left), Val::Json(right)) => left == right,
        (Val::EmptyMap, Val::Json(Value::Object(map))) | (Val::Json(Value::Object(map)), Val::EmptyMap) => {
            map.is_empty()
        }
        (Val::EmptyMap, Val::EmptyMap) => true,
        (Val::Url(left), Val::Url(right)) => left == right,
        (Val::List(_), Val::List(_) | Val::Json(Value::Array(_))) | (Val::Json(Value::Array(_)), Val::List(_)) => {
            let (Ok(left), Ok(right)) = (items(left), items(right)) else {
                return false;
            };
            left.len() == right.len() && left.iter().zip(&right).all(|(left, right)| equal(left, right))
        }
        _ => number(left).zip(number(right)).is_some_and(|(left, right)| left == right),
    }
}

fn number(value: &Val<'_>) -> Option<f64> {
    match value {
        Val::Int(value) => Some(*value as f64),
        Val::Double(value) => Some(*value),
        _ => None,
    }
}

fn compare<'a>(left: &Val<'a>, right: &Val<'a>, holds: fn(Ordering) -> bool) -> Outcome<'a> {
    let ordering = match (left, right) {
        (Val::Int(left), Val::Int(right)) => Some(left.cmp(right)),
        (Val::Text(left), Val::Text(right)) => Some(left.cmp(right)),
        (Val::Duration(left), Val::Duration(right)) => Some(left.cmp(right)),
        _ => match (number(left), number(right)) {
            (Some(left), Some(right)) => left.partial_cmp(&right),
            _ => return Err(overload("comparison")),
        },
    };
    Ok(Val::Bool(ordering.is_some_and(holds)))
}

fn arithmetic<'a>(op: Op, left: &Val<'a>, right: &Val<'a>) -> Outcome<'a> {
    let overflow = || Failure::Value("integer overflow".to_owned());
    match (op, left, right) {
        (Op::Add, Val::Text(left), Val::Text(right)) => Ok(Val::Text(Cow::Owned(format!("{left}{right}")))),
        (Op::Add, Val::Int(left), Val::Int(right)) => left.checked_add(*right).map(Val::Int).ok_or_else(overflow),
        (Op::Subtract, Val::Int(left), Val::Int(right)) => left.checked_sub(*right).map(Val::Int).ok_or_else(overflow),
        (Op::Multiply, Val::Int(left), Val::Int(right)) => left.checked_mul(*right).map(Val::Int).ok_or_else(overflow),
        (_, Val::Double(left), Val::Double(right)) => Ok(Val::Double(match op {
            Op::Add => left + right,
            Op::Subtract => left - right,
            _ => left * right,
        })),
        _ => Err(overload("arithmetic")),
    }
}

fn iterate<'a>(kind: Loop, over: &Val<'a>, name: &str, body: &'a Expr, outer: &Scope<'_, 'a>) -> Outcome<'a> {
    let mut error = None;
    let mut matched = Vec::new();
    for item in items(over)? {
        let outcome = run(body, &Scope { name, value: item.clone(), outer: Some(outer) });
        if kind == Loop::Map {
            matched.push(outcome?);
            continue;
        }
        match (kind, outcome.and_then(flag)) {
            (Loop::All, Ok(false)) => return Ok(Val::Bool(false)),
            (Loop::Exists, Ok(true)) => return Ok(Val::Bool(true)),
            (Loop::ExistsOne | Loop::Filter, Ok(true)) => matched.push(item),
            (_, Ok(_)) => {}
            // All and exists may still find what decides; the others need every answer.
            (Loop::All | Loop::Exists, Err(failure)) => error = error.or(Some(failure)),
            (_, Err(failure)) => return Err(failure),
        }
    }
    match (kind, error) {
        (_, Some(failure)) => Err(failure),
        (Loop::All, None) => Ok(Val::Bool(true)),
        (Loop::Exists, None) => Ok(Val::Bool(false)),
        (Loop::ExistsOne, None) => Ok(Val::Bool(matched.len() == 1)),
        (Loop::Filter | Loop::Map, None) => Ok(Val::List(matched)),
    }
}

fn call<'a>(function: Function, arguments: &'a [Expr], scope: &Scope<'_, 'a>) -> Outcome<'a> {
    let arguments = arguments.iter().map(|argument| run(argument, scope)).collect::<Result<Vec<_>, _>>()?;
    match (function, arguments.as_slice()) {
        (Function::Size, [Val::Text(text)]) => Ok(Val::Int(text.chars().count() as i64)),
        (Function::Size, [of]) => Ok(Val::Int(items(of)?.len() as i64)),
        (Function::Contains, [Val::Text(text), Val::Text(part)]) => Ok(Val::Bool(text.contains(&**part))),
        (Function::StartsWith, [Val::Text(text), Val::Text(part)]) => Ok(Val::Bool(text.starts_with(&**part))),
        (Function::EndsWith, [Val::Text(text), Val::Text(part)]) => Ok(Val::Bool(text.ends_with(&**part))),
        (Function::Substring, [Val::Text(text), Val::Int(from)]) => functions::substring(text, *from, None),
        (Function::Substring, [Val::Text(text), Val::Int(from), Val::Int(to)]) => {
            functions::substring(text, *from, Some(*to))
        }
        (Function::Split, [Val::Text(text), Val::Text(by)]) => {
            Ok(Val::List(text.split(&**by).map(|part| Val::Text(Cow::Owned(part.to_owned()))).collect()))
        }
        (Function::Duration, [Val::Text(text)]) => functions::duration(text),
        (Function::Int, [Val::Int(value)]) => Ok(Val::Int(*value)),
        (Function::Int, [Val::Text(text)]) => functions::int(text),
        (Function::IsIp, [Val::Text(text)]) => Ok(Val::Bool(text.parse::<std::net::IpAddr>().is_ok())),
        (Function::IsUrl, [Val::Text(text)]) => Ok(Val::Bool(functions::scheme(text).is_ok())),
        (Function::Url, [Val::Text(text)]) => match functions::scheme(text) {
            Ok(scheme) => Ok(Val::Url(scheme)),
            Err(reason) => Err(Failure::Value(format!("URL parse error: {reason}"))),
        },
        (Function::Scheme, [Val::Url(scheme)]) => Ok(Val::Text(Cow::Owned(scheme.clone()))),
        _ => Err(overload(&format!("{function:?}"))),
    }
}
