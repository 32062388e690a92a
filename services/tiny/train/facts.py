"""What the tiny chat model knows of Atelier: questions and their answers; a test holds them against the code.

Each fact has several ways to ask; the last one is never trained on, and tests ask it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.registry import WORKERS, load_models, models_of

ROUTES = {  # what one wants to do, and where
    "chat": "POST /v1/chat/completions",
    "complete a text": "POST /v1/completions",
    "get a response": "POST /v1/responses",
    "make a picture": "POST /v1/images/generations",
    "edit a picture": "POST /v1/images/edits",
    "make speech": "POST /v1/audio/speech",
    "list the voices": "GET /v1/audio/voices",
    "make a film": "POST /v1/videos",
    "make a mesh": "POST /v1/3d/generations",
    "list the models": "GET /v1/models",
    "list the jobs": "GET /v1/jobs",
    "begin a job of several steps": "POST /v1/jobs",
    "read the usage log": "GET /v1/usage",
    "make a key": "POST /v1/keys",
    "list the keys": "GET /v1/keys",
    "see the budgets": "GET /v1/budgets",
    "sign a link": "POST /v1/signed_urls",
    "check where a file comes from": "POST /v1/content_provenance_checks",
}
ERRORS = {  # statuses, and what they mean to a caller
    400: "the request is wrong; the error names the field",
    401: "the key opens nothing",
    403: "the key is not for this",
    404: "there is no such thing",
    413: "the upload is too large",
    429: "the queue is full, or a limit or budget is used up",
    501: "something is not installed",
    503: "a worker is loading or gone; try again later",
    504: "the deadline passed",
}
CODES = {  # codes of errors, with their statuses
    "invalid_api_key": 401,
    "insufficient_scope": 403,
    "model_not_found": 404,
    "payload_too_large": 413,
    "queue_full": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "not_installed": 501,
    "model_loading": 503,
    "worker_unavailable": 503,
    "deadline_exceeded": 504,
    "storage_full": 507,
}
COMMANDS = {  # what one wants to do in a terminal, and what to type
    "start everything": "atelier up",
    "chat": "atelier chat",
    "speak": "atelier speak",
    "draw": "atelier draw",
    "film": "atelier film",
    "sculpt": "atelier sculpt",
    "list the models": "atelier models",
    "download the models": "atelier models pull",
    "list the jobs": "atelier jobs list",
    "cancel a job": "atelier jobs cancel",
    "see the usage": "atelier usage",
    "make a key": "atelier keys create",
}
TASKS = {"text": "text", "audio": "speech", "image": "pictures", "video": "films", "mesh": "meshes"}


@dataclass(frozen=True)
class Fact:
    """One answer, and ways to ask for it, of which the last is held out."""

    questions: Sequence[str]
    answer: str

    @property
    def trained(self) -> Sequence[str]:
        """The ways to ask that are learned."""
        return self.questions[:-1]

    @property
    def held_out(self) -> str:
        """The way to ask that is not."""
        return self.questions[-1]


def atelier_facts() -> Sequence[Fact]:
    """Return what there is to know about Atelier."""
    return (*GENERAL, *_routes(), *_errors(), *_commands(), *_workers())


def _routes() -> Sequence[Fact]:
    return [
        Fact(
            (
                f"How do I {deed}?",
                f"Which route is there to {deed}?",
                f"What is the route to {deed}?",
                f"How can I {deed} over HTTP?",
                f"I want to {deed}. Which route do I need?",
                f"Tell me the route to {deed}.",
                f"Where do I {deed}?",
                f"Which route do I use to {deed}?",
            ),
            f"Use {route}.",
        )
        for deed, route in ROUTES.items()
    ]


def _errors() -> Sequence[Fact]:
    statuses = [
        Fact(
            (
                f"What does error {status} mean?",
                f"What does {status} mean?",
                f"Why do I get a {status}?",
                f"I got a {status}.",
                f"What is a {status}?",
                f"Explain error {status}.",
                f"Why do I get error {status}?",
            ),
            f"{status} means: {meaning}.",
        )
        for status, meaning in ERRORS.items()
    ]
    codes = [
        Fact(
            (
                f"Which status has {code}?",
                f"Which status does {code} have?",
                f"What is the status of {code}?",
                f"{code}: which status is that?",
                f"Tell me the status of {code}.",
            ),
            f"The status of {code} is {status}.",
        )
        for code, status in CODES.items()
    ]
    return [*statuses, *codes]


def _commands() -> Sequence[Fact]:
    return [
        Fact(
            (
                f"How do I {deed} from the terminal?",
                f"Which command is there to {deed}?",
                f"What do I type to {deed}?",
                f"How can I {deed} in a terminal?",
                f"What is the command to {deed}?",
                f"How do I {deed} in the terminal?",
                f"Which command do I type to {deed}?",
            ),
            f"Type `{command}`.",
        )
        for deed, command in COMMANDS.items()
    ]


def _workers() -> Sequence[Fact]:
    ports = [
        Fact(
            (
                f"Which port has the {task} worker?",
                f"On which port is the {task} worker?",
                f"Where does the {task} worker listen?",
                f"What is the port of the {task} worker?",
            ),
            f"The {task} worker listens on port {worker.port}.",
        )
        for task, worker in WORKERS.items()
    ]
    models = [
        Fact(
            (
                f"Which model makes {TASKS[task]}?",
                f"What model is there for {TASKS[task]}?",
                f"Which model do you use for {TASKS[task]}?",
                f"Tell me the model for {TASKS[task]}.",
                f"Which model is there for {TASKS[task]}?",
            ),
            f"The model for {TASKS[task]} is {models_of(task, load_models(profile='hub'))[0].id}.",
        )
        for task in WORKERS
    ]
    return [*ports, *models]


GENERAL = (
    Fact(
        (
            "What is Atelier?",
            "Tell me about Atelier.",
            "What does Atelier do?",
            "Explain Atelier.",
            "What is this?",
            "What can Atelier do?",
            "Can you explain what Atelier is?",
            "Please tell me what Atelier is.",
        ),
        "Atelier serves models for text, speech, pictures, films and meshes behind one HTTP API.",
    ),
    Fact(
        (
            "Who are you?",
            "What are you?",
            "Are you a human?",
            "Are you a robot?",
            "Which model are you?",
            "Are you real?",
            "Are you ChatGPT?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "Tell me who you are.",
        ),
        "I am a tiny model that Atelier trained on dialogues of its own.",
    ),
    Fact(
        (
            "How big are you?",
            "How large are you?",
            "How small are you?",
            "How many parameters do you have?",
            "How tiny are you?",
        ),
        "I am tiny: I have about one million parameters.",
    ),
    Fact(
        (
            "What can you do?",
            "What can I ask you?",
            "How can you help me?",
            "Can you help me?",
            "Help!",
            "What do you know?",
            "I need help.",
            "What are you good at?",
        ),
        "Ask me about Atelier, give me small sums, or let me repeat, spell and count.",
    ),
    Fact(
        (
            "How do I start Atelier?",
            "How do I install Atelier?",
            "How can I run Atelier?",
            "How do I begin?",
            "What do I do first?",
            "How do I start?",
            "How do I set it up?",
            "How can I start Atelier?",
        ),
        "Run `make up`: it installs and serves everything on http://127.0.0.1:8000.",
    ),
    Fact(
        (
            "How do I run the tests?",
            "How do I test it?",
            "How do I test Atelier?",
            "Which command runs the tests?",
            "How can I run the tests?",
        ),
        "Run `make test` in another terminal.",
    ),
    Fact(
        (
            "How do I stop Atelier?",
            "How can I stop it?",
            "How do I stop everything?",
            "How do I turn it off?",
            "How can I stop Atelier?",
        ),
        "Press Ctrl-C: it stops all of it.",
    ),
    Fact(
        (
            "Where is the studio?",
            "What is the studio?",
            "How do I open the studio?",
            "Is there a web page?",
            "Which address has the studio?",
            "Where can I find the studio?",
        ),
        "The studio is at http://127.0.0.1:8501 in a browser.",
    ),
    Fact(
        (
            "Where is the documentation?",
            "Where are the docs?",
            "Which page shows every route?",
            "Is there documentation?",
            "Where can I find the docs?",
        ),
        "http://127.0.0.1:8000/docs shows every route with its parameters.",
    ),
    Fact(
        (
            "How do I use real weights?",
            "How do I get the real models?",
            "How do I serve real models?",
            "Can I use real models?",
            "How can I use real weights?",
        ),
        "Run `ATELIER_PROFILE=hub make up`: it downloads the real weights.",
    ),
    Fact(
        (
            "Does the OpenAI SDK work?",
            "Can I use the OpenAI SDK?",
            "Is it compatible with OpenAI?",
            "Does Atelier work with the OpenAI SDK?",
        ),
        "Yes: give it the base URL http://127.0.0.1:8000/v1.",
    ),
    Fact(
        (
            "Do I need a key?",
            "Do I need an API key?",
            "Is a key needed?",
            "Must I have a key?",
            "Do I have to send a key?",
        ),
        "No, as long as there is none and only this machine can ask.",
    ),
    Fact(
        (
            "Do I need a GPU?",
            "Is a GPU needed?",
            "Does it run without a GPU?",
            "Can I run it without a GPU?",
            "Must I have a GPU?",
        ),
        "No: the tiny models run on any processor.",
    ),
    Fact(
        (
            "What is a job?",
            "What are jobs?",
            "What does a job do?",
            "Explain jobs.",
            "Tell me what a job is.",
        ),
        "A job is work that goes on without you: it survives whoever is killed.",
    ),
    Fact(
        (
            "How do I make a job of a request?",
            "How do I get a job instead of an answer?",
            "How do I not wait for an answer?",
            "Can I get an answer later?",
            "How can I make a job of a request?",
        ),
        "Send `Prefer: respond-async`: it answers 202 with a job at once.",
    ),
    Fact(
        (
            "What happens when I leave?",
            "What happens when a caller leaves?",
            "What happens if I close the connection?",
            "What if I go away?",
            "What happens if I leave?",
        ),
        "Then the model stops at its next iteration.",
    ),
    Fact(
        (
            "What is a worker?",
            "What does a worker do?",
            "What are workers?",
            "Explain what a worker is.",
        ),
        "A worker owns a model and its device, and does one kind of work.",
    ),
    Fact(
        (
            "What is the gateway?",
            "What does the gateway do?",
            "Explain the gateway.",
            "Tell me what the gateway is.",
        ),
        "The gateway takes requests on port 8000 and sends them on to the workers.",
    ),
    Fact(
        (
            "What do I need to install?",
            "What does Atelier run on?",
            "Which Python do I need?",
            "What do I need?",
            "Which Python does Atelier need?",
        ),
        "You need Linux with Python 3.11 and a package index.",
    ),
    Fact(
        (
            "How do I get the same answer again?",
            "How do I repeat a result?",
            "What is a seed?",
            "What does the seed do?",
            "How can I get the same answer again?",
        ),
        "Send the same `seed`: it gives the same result.",
    ),
)
