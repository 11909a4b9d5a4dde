//! A scripted model: a server on 127.0.0.1 that speaks enough of the Anthropic Messages API, of the OpenAI Responses and
//! Chat Completions APIs and of the Gemini API to lead a real agent through a fixed list of tool calls, and writes down
//! what the agent answered.
//!
//! ```ignore
//! let model = Model::start(vec![Call::new("Bash", json!({"command": "ls"}))]);
//! // run the agent with ANTHROPIC_BASE_URL set to model.url()
//! let answers = model.finish();
//! ```
//!
//! *Which step is next* is read from the conversation, not counted here: every step is one message of the assistant,
//! so the number of those in a request is the number of steps already played. A retry gets the same step again, and
//! `--continue` goes on where the last run stopped. Requests that offer no tools (titles, summaries) play no step.

mod chat;
mod frames;
mod generate;
mod http;
mod messages;
mod responses;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What the assistant says when the script is at its end.
pub const DONE: &str = "done";

/// One tool call that the model makes.
pub struct Call {
    name: String,
    input: Input,
}

enum Input {
    Fixed(Value),
    Made(Make),
}

/// Makes an input from the answers so far.
type Make = Box<dyn Fn(&[Answer]) -> Value + Send + Sync>;

impl Call {
    /// A call whose input is known beforehand.
    pub fn new(name: &str, input: Value) -> Call {
        Call { name: name.to_owned(), input: Input::Fixed(input) }
    }

    /// A call whose input depends on the answers so far.
    pub fn with(name: &str, input: impl Fn(&[Answer]) -> Value + Send + Sync + 'static) -> Call {
        Call { name: name.to_owned(), input: Input::Made(Box::new(input)) }
    }
}

/// One message of the assistant.
pub enum Step {
    /// A tool call; the turn goes on.
    Call(Call),
    /// A text; the turn ends.
    Say(String),
    /// No answer until [`Model::release`]: an agent that waits for its model.
    Hold,
    /// An HTTP error.
    Fail(u16),
}

impl From<Call> for Step {
    fn from(call: Call) -> Step {
        Step::Call(call)
    }
}

/// What the agent answered to one call.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The tool.
    pub name: String,
    /// The input it was called with.
    pub input: Value,
    /// Whether the agent offered this tool in the request that the call answered.
    pub offered: bool,
    /// Whether the agent called it an error: a denied call is one, and so is a command that failed.
    pub is_error: bool,
    /// The text of the answer.
    pub text: String,
}

/// One request, as far as tests care.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// `POST`, `HEAD`…
    pub method: String,
    /// With the query.
    pub path: String,
    /// The header `authorization`.
    pub authorization: Option<String>,
    /// The header `x-api-key`.
    pub x_api_key: Option<String>,
    /// The header `chatgpt-account-id`.
    pub account: Option<String>,
    /// The header `x-goog-api-key`.
    pub x_goog_api_key: Option<String>,
    /// The names of the tools offered, sorted. Empty in a side request.
    pub tools: Vec<String>,
    /// The whole body.
    pub body: Value,
}

/// What the assistant says in one message.
enum Said {
    Text(String),
    Call { id: String, name: String, input: Value },
}

/// How the paths end to which the model says something.
const ANSWERED: [&str; 4] = ["/v1/messages", "/responses", "enerateContent", "/chat/completions"];

/// The API that an agent speaks.
#[derive(Clone, Copy)]
enum Speaks {
    Messages,
    Responses,
    /// In an envelope where it is the API for those who have logged in.
    Generate {
        envelope: bool,
    },
    Chat,
}

impl Speaks {
    fn offered(self, body: &Value) -> Vec<String> {
        match self {
            Speaks::Messages => messages::offered(body),
            Speaks::Responses => responses::offered(body),
            Speaks::Generate { .. } => generate::offered(body),
            Speaks::Chat => chat::offered(body),
        }
    }

    fn played(self, body: &Value) -> usize {
        match self {
            Speaks::Messages | Speaks::Chat => messages::played(body),
            Speaks::Responses => responses::played(body),
            Speaks::Generate { .. } => generate::played(body),
        }
    }

    fn results(self, body: &Value) -> Vec<(&str, bool, String)> {
        match self {
            Speaks::Messages => messages::results(body).collect(),
            Speaks::Responses => responses::results(body).collect(),
            Speaks::Generate { .. } => generate::results(body).collect(),
            Speaks::Chat => chat::results(body).collect(),
        }
    }

    /// What satisfies a request on the side.
    fn side_answer(self, body: &Value) -> String {
        match self {
            Speaks::Generate { .. } => generate::side_answer(body),
            Speaks::Messages | Speaks::Responses | Speaks::Chat => messages::side_answer(body),
        }
    }

    fn say(self, body: &Value, said: &Said) -> http::Response {
        match (self, said) {
            (Speaks::Messages, said) => {
                let content = match said {
                    Said::Text(text) => messages::text(text),
                    Said::Call { id, name, input } => messages::tool_use(id, name, input),
                };
                let message = messages::message(body, content);
                match body["stream"].as_bool() {
                    Some(true) => http::Response::events(messages::events(&message)),
                    _ => http::Response::json(200, &message),
                }
            }
            (Speaks::Responses, Said::Text(text)) => {
                http::Response::events(responses::events(body, responses::text(text)))
            }
            (Speaks::Responses, Said::Call { id, name, input }) => {
                http::Response::events(responses::events(body, responses::tool_use(id, name, input)))
            }
            (Speaks::Generate { envelope }, said) => {
                let part = match said {
                    Said::Text(text) => generate::text(text),
                    Said::Call { id, name, input } => generate::tool_use(id, name, input),
                };
                let answer = generate::answer(&part);
                let answer = if envelope { json!({ "response": answer }) } else { answer };
                // What asks for no stream offers no tools.
                match generate::offered(body).is_empty() {
                    true => http::Response::json(200, &answer),
                    false => http::Response::events(vec![answer]),
                }
            }
            (Speaks::Chat, said) => {
                let message = match said {
                    Said::Text(text) => chat::text(text),
                    Said::Call { id, name, input } => chat::tool_use(id, name, input),
                };
                match body["stream"].as_bool() {
                    Some(true) => http::Response::events(chat::events(body, &message)),
                    _ => http::Response::json(200, &chat::answer(body, &message)),
                }
            }
        }
    }
}

/// The running server. Dropped or finished, it ends every connection.
pub struct Model {
    shared: Arc<Shared>,
    address: SocketAddr,
    accept: Option<JoinHandle<()>>,
}

/// What all connections see.
struct Shared {
    steps: Vec<Step>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Calls made, by the id that their result will carry. An answered one is gone from here.
    open: HashMap<String, Answer>,
    answers: Vec<Answer>,
    requests: Vec<Request>,
    /// The prompts of the subagents that the script has asked for.
    subagents: Vec<String>,
    made: usize,
    released: bool,
    ended: bool,
    connections: Vec<TcpStream>,
}

impl Model {
    /// Plays `calls`, one in each message, then ends the turn with [`DONE`].
    pub fn start(calls: Vec<Call>) -> Model {
        Model::play(calls.into_iter().map(Step::from).collect())
    }

    /// Plays several turns: each list of calls ends with [`DONE`] and the next begins with the user's next prompt.
    pub fn turns(turns: Vec<Vec<Call>>) -> Model {
        let turn = |calls: Vec<Call>| calls.into_iter().map(Step::from).chain([Step::Say(DONE.to_owned())]);
        Model::play(turns.into_iter().flat_map(turn).collect())
    }

    /// Plays any steps. After the last one the assistant says [`DONE`], however often it is asked.
    pub fn play(steps: Vec<Step>) -> Model {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on 127.0.0.1");
        let address = listener.local_addr().expect("the port that was given");
        let shared = Arc::new(Shared { steps, state: Mutex::default(), changed: Condvar::new() });
        let server = Arc::clone(&shared);
        let accept = std::thread::spawn(move || server.accept(&listener));
        Model { shared, address, accept: Some(accept) }
    }

    /// The base URL for the agent.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The answers so far.
    pub fn answers(&self) -> Vec<Answer> {
        self.shared.lock().answers.clone()
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Waits until the agent has offered its tools to the model `count` times; says whether it came to that.
    pub fn wait_for_requests(&self, count: usize, limit: Duration) -> bool {
        self.shared.wait(limit, |state| state.requests.iter().filter(|r| !r.tools.is_empty()).count() >= count)
    }

    /// Waits until `count` calls are answered; says whether it came to that.
    pub fn wait_for_answers(&self, count: usize, limit: Duration) -> bool {
        self.shared.wait(limit, |state| state.answers.len() >= count)
    }

    /// Lets every [`Step::Hold`] go on, now and later.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }

    /// Stops the server. The answers in the order in which they came; a call that was never answered is not there.
    pub fn finish(mut self) -> Vec<Answer> {
        self.stop();
        self.answers()
    }

    fn stop(&mut self) {
        let Some(accept) = self.accept.take() else { return };
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        // accept() has no other way to be woken than a connection. It fails only if the listener is gone already.
        let _ = TcpStream::connect(self.address);
        // A panic of the server thread has been printed; a second one in drop would abort the test binary.
        let _ = accept.join();
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no connection panicked while it held the state")
    }

    /// Waits for `reached`, for the end, or for `limit`; says whether it was reached.
    fn wait(&self, limit: Duration, reached: impl Fn(&State) -> bool) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.lock();
        while !reached(&state) && !state.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).expect("as in lock").0;
        }
        reached(&state)
    }

    /// One thread for each connection, all of them joined before this returns.
    fn accept(&self, listener: &TcpListener) {
        std::thread::scope(|scope| {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut state = self.lock();
                if state.ended {
                    state.connections.iter().for_each(|open| {
                        // Fails where the agent has closed its end, which is as good.
                        let _ = open.shutdown(Shutdown::Both);
                    });
                    break;
                }
                state.connections.extend(stream.try_clone());
                drop(state);
                scope.spawn(move || self.serve(&stream));
            }
        });
    }

    /// Answers the requests of one connection until the agent closes it. Agents die in tests: an error is an end.
    fn serve(&self, stream: &TcpStream) {
        let mut reader = std::io::BufReader::new(stream);
        while let Ok(Some(request)) = http::read(&mut reader) {
            let response = self.respond(&request);
            if response.write(&mut &*stream, request.method == "HEAD").is_err() {
                return;
            }
        }
    }

    fn respond(&self, request: &http::Request) -> http::Response {
        let mut body = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
        let path = request.path.split('?').next().unwrap_or_default();
        let speaks = match path {
            path if path.ends_with("/responses") => Speaks::Responses,
            path if path.ends_with("enerateContent") => Speaks::Generate { envelope: path.contains("/v1internal:") },
            path if path.ends_with("/chat/completions") => Speaks::Chat,
            _ => Speaks::Messages,
        };
        if let Speaks::Generate { envelope: true } = speaks {
            body = body["request"].take();
        }
        // Of Amazon's API the path says whether the answer is a stream, and which model it is of.
        let amazons = path.contains("/model/");
        if amazons {
            body["stream"] = path.ends_with("/invoke-with-response-stream").into();
            body["model"] = "scripted".into();
        }
        let tools = speaks.offered(&body);
        self.lock().requests.push(Request {
            method: request.method.clone(),
            path: request.path.clone(),
            authorization: request.header("authorization"),
            x_api_key: request.header("x-api-key"),
            account: request.header("chatgpt-account-id"),
            x_goog_api_key: request.header("x-goog-api-key"),
            tools: tools.clone(),
            body: body.clone(),
        });
        self.changed.notify_all();
        match request.method.as_str() {
            "HEAD" => http::Response::json(200, &json!({})),
            "POST" if ANSWERED.iter().any(|end| path.ends_with(end)) => self.message(speaks, &body, &tools),
            "POST" if amazons => self.message(speaks, &body, &tools).framed(),
            "POST" if path.ends_with("awPredict") => self.message(speaks, &body, &tools),
            "POST" if path.ends_with(":loadCodeAssist") => http::Response::json(200, &generate::tier()),
            "POST" if path.ends_with(":countTokens") => http::Response::json(200, &json!({"totalTokens": 10})),
            "POST" if path.ends_with("/count_tokens") => http::Response::json(200, &json!({"input_tokens": 10})),
            _ => http::Response::json(404, &messages::error("not_found_error", "not scripted")),
        }
    }

    /// The assistant's next message.
    fn message(&self, speaks: Speaks, body: &Value, tools: &[String]) -> http::Response {
        self.note_results(speaks, body);
        let said = if tools.is_empty() {
            Said::Text(speaks.side_answer(body))
        } else if self.is_subagent(body) {
            Said::Text(DONE.to_owned())
        } else {
            match self.steps.get(speaks.played(body)) {
                None => Said::Text(DONE.to_owned()),
                Some(Step::Say(text)) => Said::Text(text.clone()),
                Some(Step::Call(call)) => self.make(call, tools),
                Some(Step::Hold) => {
                    drop(self.changed.wait_while(self.lock(), |state| !state.released && !state.ended));
                    Said::Text(DONE.to_owned())
                }
                Some(Step::Fail(status)) => {
                    return http::Response::json(*status, &messages::error("api_error", "scripted"));
                }
            }
        };
        speaks.say(body, &said)
    }

    /// Gives a call its id and remembers it until the result comes.
    fn make(&self, call: &Call, tools: &[String]) -> Said {
        let mut state = self.lock();
        let input = match &call.input {
            Input::Fixed(input) => input.clone(),
            Input::Made(make) => make(&state.answers),
        };
        state.made += 1;
        let id = format!("toolu_scripted{:04}", state.made);
        let (name, offered) = (call.name.clone(), tools.contains(&call.name));
        if ["Agent", "Task"].contains(&name.as_str()) {
            state.subagents.extend(input["prompt"].as_str().map(str::to_owned));
        }
        let answer = Answer { name: name.clone(), input: input.clone(), offered, is_error: false, text: String::new() };
        state.open.insert(id.clone(), answer);
        Said::Call { id, name, input }
    }

    /// Writes down the results in a request. The whole conversation comes every time: only the first one counts.
    fn note_results(&self, speaks: Speaks, body: &Value) {
        let mut state = self.lock();
        for (id, is_error, text) in speaks.results(body) {
            if let Some(call) = state.open.remove(id) {
                state.answers.push(Answer { is_error, text, ..call });
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A subagent offers tools as well, but its conversation begins with the prompt that the script gave it.
    fn is_subagent(&self, body: &Value) -> bool {
        let state = self.lock();
        messages::first_texts(body).any(|text| state.subagents.iter().any(|prompt| prompt == text))
    }
}
