//! The JSON of an object, as a tree or as its text.
//!
//! A tree of a pod takes ten times what its text takes, and a cluster has very many of them that are read once. So a source
//! packs those that are many, and whoever reads one does not know.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

/// The JSON of an object. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Body(Form);

#[derive(Clone, Debug)]
enum Form {
    Tree(Arc<Value>),
    Text(Arc<str>),
}

impl Body {
    /// The value: borrowed from a tree, read from a text.
    pub fn read(&self) -> Cow<'_, Value> {
        match &self.0 {
            Form::Tree(tree) => Cow::Borrowed(tree),
            Form::Text(text) => Cow::Owned(parsed(text)),
        }
    }

    /// A field of the value; JSON null when there is none.
    pub fn part(&self, name: &str) -> Cow<'_, Value> {
        match self.read() {
            Cow::Borrowed(value) => Cow::Borrowed(value.get(name).unwrap_or(&Value::Null)),
            Cow::Owned(mut value) => Cow::Owned(value.get_mut(name).map(Value::take).unwrap_or_default()),
        }
    }

    /// The value as a tree that can be kept.
    pub fn tree(&self) -> Arc<Value> {
        match &self.0 {
            Form::Tree(tree) => tree.clone(),
            Form::Text(text) => Arc::new(parsed(text)),
        }
    }

    /// The value itself, copied only while others hold it too.
    pub fn into_value(self) -> Value {
        match self.0 {
            Form::Tree(tree) => Arc::unwrap_or_clone(tree),
            Form::Text(text) => parsed(&text),
        }
    }

    /// The text, if it is packed.
    pub fn text(&self) -> Option<&str> {
        match &self.0 {
            Form::Tree(_) => None,
            Form::Text(text) => Some(text),
        }
    }

    /// The same value as text.
    #[must_use]
    pub fn packed(&self) -> Body {
        match &self.0 {
            Form::Tree(tree) => Body(Form::Text(tree.to_string().into())),
            Form::Text(_) => self.clone(),
        }
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("text that a value was printed as can be read")
}

impl From<Value> for Body {
    fn from(value: Value) -> Self {
        Body(Form::Tree(Arc::new(value)))
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Form::Tree(a), Form::Tree(b)) => Arc::ptr_eq(a, b) || a == b,
            // Two texts of one value differ when its fields came in another order.
            (Form::Text(a), Form::Text(b)) if a == b => true,
            _ => self.read() == other.read(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_packed_body_is_the_same_value() {
        let value = json!({"spec": {"a": [1, 2.5, "x", null], "b": true}, "status": {}});
        let (tree, packed) = (Body::from(value.clone()), Body::from(value.clone()).packed());
        assert_eq!(tree, packed);
        assert_eq!((packed.read().into_owned(), &*packed.tree()), (value.clone(), &value));
        for body in [&tree, &packed] {
            assert_eq!(*body.part("spec"), value["spec"]);
            assert_eq!(*body.part("nothing"), Value::Null);
        }
        assert_eq!(Body::from(json!({"a": 1, "b": 2})).packed(), Body::from(json!({"b": 2, "a": 1})).packed());
        assert_ne!(packed, Body::from(json!({})).packed());
    }
}
