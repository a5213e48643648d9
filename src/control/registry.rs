//! The methods: a name, the states it may be called in, typed parameters, a handler, and what the reference
//! says about it. Each family of methods is a file below `methods/`.

use super::error::{self, RpcError};
use super::jsonrpc::{self, Incoming, NotARequest, Request};
use super::node::{Node, State};
use super::params::{self, Field, Params};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// In which states of the node a method may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callable {
    /// Only before `framework_start_init`.
    Startup,
    /// Only after it.
    Runtime,
    /// At any time.
    Always,
}

impl Callable {
    /// Whether `state` allows it.
    pub fn in_state(self, state: State) -> bool {
        match self {
            Callable::Startup => state == State::Startup,
            Callable::Runtime => state == State::Runtime,
            Callable::Always => true,
        }
    }

    fn refusal(self) -> RpcError {
        RpcError::invalid_state(match self {
            Callable::Startup => "Method may only be called before the framework is initialized",
            Callable::Runtime | Callable::Always => {
                "Method may only be called after the framework is initialized: call framework_start_init, \
                 or framework_wait_init while a configuration is being loaded"
            }
        })
    }
}

type Handler = Box<dyn Fn(&Arc<Node>, Option<Value>) -> Result<Value, RpcError> + Send + Sync>;

/// One method.
pub struct Method {
    /// The name to call it by.
    pub name: &'static str,
    /// Older names that still work.
    pub aliases: &'static [&'static str],
    /// When it may be called.
    pub callable: Callable,
    /// What it does.
    pub summary: &'static str,
    /// What it answers.
    pub result: &'static str,
    /// Codes beyond -32602 and -1, each with its cause.
    pub errors: &'static [(i32, &'static str)],
    /// Parameters of the reference's example; empty if there are none.
    pub example: &'static str,
    fields: fn() -> Vec<Field>,
    check: fn(Option<Value>) -> Result<(), RpcError>,
    handler: Handler,
}

impl Method {
    /// A method whose parameters are a `P` and whose result is an `R`.
    pub fn new<P, R>(
        name: &'static str,
        callable: Callable,
        handler: fn(&Arc<Node>, P) -> Result<R, RpcError>,
    ) -> Method
    where
        P: Params + 'static,
        R: Serialize + 'static,
    {
        Method {
            name,
            aliases: &[],
            callable,
            summary: "",
            result: "`true`",
            errors: &[],
            example: "",
            fields: P::fields,
            check: |params| params::read::<P>(params).map(|_| ()),
            handler: Box::new(move |node, params| {
                let result = handler(node, params::read(params)?)?;
                serde_json::to_value(result)
                    .map_err(|error| RpcError::internal(format!("the result cannot be written: {error}")))
            }),
        }
    }

    /// Says what it does.
    pub fn summary(self, summary: &'static str) -> Method {
        Method { summary, ..self }
    }

    /// Says what it answers, where that is not `true`.
    pub fn result(self, result: &'static str) -> Method {
        Method { result, ..self }
    }

    /// Lists the errors that are its own.
    pub fn errors(self, errors: &'static [(i32, &'static str)]) -> Method {
        Method { errors, ..self }
    }

    /// Gives the reference's example parameters.
    pub fn example(self, example: &'static str) -> Method {
        Method { example, ..self }
    }

    /// Adds older names.
    pub fn aliases(self, aliases: &'static [&'static str]) -> Method {
        Method { aliases, ..self }
    }

    /// Whether a call with these parameters would reach the handler.
    pub fn check(&self, params: Option<Value>) -> Result<(), RpcError> {
        (self.check)(params)
    }

    /// Its parameters, for the reference.
    pub fn fields(&self) -> Vec<Field> {
        (self.fields)()
    }
}

/// A family of methods as the reference shows it.
pub struct Family {
    /// Heading.
    pub title: &'static str,
    /// What they have in common.
    pub about: &'static str,
    /// In the order in which their examples can be run.
    pub methods: Vec<Method>,
}

/// Every method by name and alias.
pub struct Registry {
    families: Vec<Family>,
    /// Name or alias → (family, method, whether it is an alias).
    index: BTreeMap<&'static str, (usize, usize, bool)>,
}

impl Registry {
    /// Indexes the families. Two methods of one name are a mistake in this source: the first one wins and a
    /// unit test fails.
    pub fn new(families: Vec<Family>) -> Registry {
        let mut index = BTreeMap::new();
        for (f, family) in families.iter().enumerate() {
            for (m, method) in family.methods.iter().enumerate() {
                index.entry(method.name).or_insert((f, m, false));
                for alias in method.aliases {
                    index.entry(alias).or_insert((f, m, true));
                }
            }
        }
        Registry { families, index }
    }

    /// The families, in the order of the reference.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// Names as `rpc_get_methods` lists them.
    pub fn names(&self, state: Option<State>, include_aliases: bool) -> Vec<&'static str> {
        self.index
            .iter()
            .filter(|(_, (_, _, alias))| include_aliases || !alias)
            .filter(|(_, (f, m, _))| {
                state.is_none_or(|state| self.families[*f].methods[*m].callable.in_state(state))
            })
            .map(|(name, _)| *name)
            .collect()
    }

    /// Finds a method by its name or an alias.
    pub fn find(&self, name: &str) -> Option<&Method> {
        self.index.get(name).map(|(f, m, _)| &self.families[*f].methods[*m])
    }

    /// As `find`; an error if there is none.
    pub fn expect(&self, name: &str) -> Result<&Method, RpcError> {
        self.find(name)
            .ok_or_else(|| RpcError::new(error::METHOD_NOT_FOUND, format!("Method not found: '{name}'")))
    }

    /// Calls a method, if the node's state allows it.
    pub fn call(&self, node: &Arc<Node>, name: &str, params: Option<Value>) -> Result<Value, RpcError> {
        if let Some(method) = self.find(name)
            && !method.callable.in_state(node.state())
        {
            return Err(method.callable.refusal());
        }
        self.call_while_starting(node, name, params)
    }

    /// Calls a method whatever the state: a configuration file is read before the node counts as started.
    /// A panic in a handler is a fault of ours that costs this call and nothing else.
    pub fn call_while_starting(
        &self,
        node: &Arc<Node>,
        name: &str,
        params: Option<Value>,
    ) -> Result<Value, RpcError> {
        let method = self.expect(name)?;
        catch_unwind(AssertUnwindSafe(|| (method.handler)(node, params))).unwrap_or_else(|_| {
            tracing::error!(method = name, "a handler panicked; this is a bug, please report it");
            Err(RpcError::internal(format!("{name} failed inside; see the log")))
        })
    }

    /// Answers one value from the stream; `None` if it held notifications only.
    pub fn answer(&self, node: &Arc<Node>, incoming: Incoming) -> Option<Value> {
        match incoming {
            Incoming::Single(request) => self.answer_one(node, request),
            Incoming::Batch(requests) => {
                let replies: Vec<Value> =
                    requests.into_iter().filter_map(|request| self.answer_one(node, request)).collect();
                (!replies.is_empty()).then(|| json!(replies))
            }
        }
    }

    fn answer_one(&self, node: &Arc<Node>, request: Result<Request, NotARequest>) -> Option<Value> {
        match request {
            Ok(request) => {
                let outcome = self.call(node, &request.method, request.params);
                if let Err(error) = &outcome {
                    tracing::debug!(method = request.method, %error, "request failed");
                }
                request.id.map(|id| jsonrpc::reply(&id, outcome))
            }
            Err(refused) => Some(jsonrpc::reply(&refused.id, Err(refused.error))),
        }
    }
}
