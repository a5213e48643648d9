//! Typed parameters: a structure read by serde that also knows how to describe itself.
//!
//! `params!` declares the structure once; reading it, refusing what it does not know, naming the member that
//! is wrong, and its table in the RPC reference all come from that one declaration.

use super::error::RpcError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// One parameter, for the RPC reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name; members of a nested object are `outer.inner`.
    pub name: String,
    /// Its type in JSON's words.
    pub kind: String,
    /// Whether a call without it is refused.
    pub required: bool,
    /// Meaning, unit and default.
    pub doc: String,
}

/// A structure of parameters.
pub trait Params: DeserializeOwned {
    /// Describes every parameter, in order.
    fn fields() -> Vec<Field>;
}

/// A type that a parameter may have.
pub trait ParamType {
    /// JSON's word for it.
    fn kind() -> String;
    /// Whether it must be given.
    fn required() -> bool {
        true
    }
    /// Members, where it is an object.
    fn members() -> Vec<Field> {
        Vec::new()
    }
}

macro_rules! simple_types {
    ($($type:ty => $kind:literal),* $(,)?) => {
        $(impl ParamType for $type {
            fn kind() -> String {
                $kind.to_string()
            }
        })*
    };
}

simple_types! {
    bool => "boolean", String => "string", f64 => "number", Value => "any", uuid::Uuid => "UUID",
    u8 => "integer", u16 => "integer", u32 => "integer", u64 => "integer", usize => "integer",
    i32 => "integer", i64 => "integer", std::net::IpAddr => "IP address", Map<String, Value> => "object",
}

impl<T: ParamType> ParamType for Option<T> {
    fn kind() -> String {
        T::kind()
    }
    fn required() -> bool {
        false
    }
    fn members() -> Vec<Field> {
        T::members()
    }
}

impl<T: ParamType> ParamType for Vec<T> {
    fn kind() -> String {
        format!("array of {}", T::kind())
    }
    fn members() -> Vec<Field> {
        T::members()
    }
}

/// The description of the member `name` of type `T`, and of `T`'s own members below it.
pub fn describe<T: ParamType>(name: &str, doc: &str) -> Vec<Field> {
    let mut fields = vec![Field {
        name: name.to_string(),
        kind: T::kind(),
        required: T::required(),
        doc: doc.trim().to_string(),
    }];
    fields.extend(
        T::members().into_iter().map(|inner| Field { name: format!("{name}.{}", inner.name), ..inner }),
    );
    fields
}

/// Reads parameters; an error names the member it is about.
pub fn read<P: Params>(params: Option<Value>) -> Result<P, RpcError> {
    let params = match params {
        None => Value::Object(Map::new()),
        Some(params @ Value::Object(_)) => params,
        Some(_) => {
            return Err(RpcError::invalid_params(
                "Invalid parameters: they are an object with named members, not an array",
            ));
        }
    };
    serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        RpcError::invalid_params(match path.as_str() {
            "." => format!("Invalid parameters: {reason}"),
            path => format!("Invalid parameters: '{path}': {reason}"),
        })
    })
}

/// Declares a structure of parameters: doc comments become the reference's text.
macro_rules! params {
    ($(#[doc = $about:literal])* $vis:vis struct $name:ident {
        $($(#[doc = $doc:literal])* $field:ident : $type:ty),* $(,)?
    }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        $vis struct $name {
            $($(#[doc = $doc])* pub $field: $type,)*
        }

        impl $crate::control::params::Params for $name {
            fn fields() -> Vec<$crate::control::params::Field> {
                let fields: Vec<Vec<$crate::control::params::Field>> = vec![
                    $($crate::control::params::describe::<$type>(stringify!($field), concat!($($doc),*)),)*
                ];
                fields.concat()
            }
        }

        impl $crate::control::params::ParamType for $name {
            fn kind() -> String {
                "object".to_string()
            }
            fn members() -> Vec<$crate::control::params::Field> {
                <$name as $crate::control::params::Params>::fields()
            }
        }
    };
}
pub(in crate::control) use params;

/// Declares an enumeration of words.
macro_rules! choice {
    ($(#[doc = $about:literal])* $vis:vis enum $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
        $vis enum $name {
            $($(#[doc = $doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $crate::control::params::ParamType for $name {
            fn kind() -> String {
                [$(concat!("`", $word, "`")),*].join(" \\| ")
            }
        }
    };
}
pub(in crate::control) use choice;

params! {
    /// No parameters at all.
    pub struct NoParams {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    choice! {
        /// A colour.
        enum Colour { /** Red. */ Red = "red", /** Blue. */ Blue = "blue" }
    }

    params! {
        /// An inner object.
        struct Inner {
            /// A port.
            port: u16,
        }
    }

    params! {
        /// An outer one.
        struct Outer {
            /// A name.
            name: String,
            /// A colour.
            colour: Option<Colour>,
            /// Where.
            inner: Option<Inner>,
        }
    }

    fn message(params: Value) -> String {
        let error = read::<Outer>(Some(params)).unwrap_err();
        assert_eq!(error.code, super::super::error::INVALID_PARAMS);
        error.message
    }

    #[test]
    fn an_error_names_the_parameter_it_is_about() {
        assert!(message(json!({})).contains("`name`"));
        assert!(message(json!({"name": 5})).contains("'name'"));
        assert!(message(json!({"name": "a", "inner": {"port": 70000}})).contains("'inner.port'"));
        assert!(message(json!({"name": "a", "colour": "green"})).contains("'colour'"));
        assert!(message(json!({"name": "a", "size": 5})).contains("size"));
        assert!(message(json!(["a"])).contains("named members"));
    }

    #[test]
    fn optional_parameters_may_be_left_out_or_null() {
        let outer: Outer = read(Some(json!({"name": "a", "colour": null}))).unwrap();
        assert!(outer.colour.is_none() && outer.inner.is_none());
        let outer: Outer = read(Some(json!({"name": "a", "colour": "blue", "inner": {"port": 1}}))).unwrap();
        assert_eq!((outer.name.as_str(), outer.colour), ("a", Some(Colour::Blue)));
        assert_eq!(outer.inner.map(|inner| inner.port), Some(1));
        read::<NoParams>(None).unwrap();
    }

    #[test]
    fn a_structure_describes_itself_with_nested_members() {
        let fields = Outer::fields();
        let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["name", "colour", "inner", "inner.port"]);
        assert_eq!(fields[1].kind, "`red` \\| `blue`");
        assert!(fields[0].required && !fields[2].required);
        assert_eq!(fields[3].doc, "A port.");
    }
}
