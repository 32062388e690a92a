"""What the tiny chat model says when it is not about Atelier; words and sentences alone."""

from services.tiny.train.facts import Fact

SMALL_TALK = (
    Fact(
        ("Hello", "Hi", "Hello!", "Hi!", "Hey", "Hi there!", "Good day!", "Hello there!"), "Hello! How can I help you?"
    ),
    Fact(("Good morning!", "Good morning.", "A good morning to you!"), "Good morning! How can I help you?"),
    Fact(("Good evening.", "Good evening!", "A good evening to you!"), "Good evening! How can I help you?"),
    Fact(
        (
            "How are you?",
            "How are you today?",
            "How do you do?",
            "Are you well?",
            "How is it going?",
            "How do you feel?",
            "How are you doing?",
        ),
        "I am well, thank you! And you?",
    ),
    Fact(
        ("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "Many thanks!", "Thank you so much!"),
        "You are welcome!",
    ),
    Fact(("Goodbye!", "Bye!", "See you!", "Good night!", "I have to go.", "Bye bye!"), "Goodbye! Come back soon."),
    Fact(("I am well.", "I am fine.", "I am happy.", "Very well!", "I am very well."), "I am glad to hear that!"),
    Fact(("I am sad.", "I am tired.", "I feel bad.", "I am ill.", "I am very sad."), "I am sorry to hear that."),
    Fact(
        ("You are great!", "Well done!", "Good job!", "You are nice.", "I like you.", "You are very good!"),
        "Thank you!",
    ),
    Fact(
        ("You are wrong.", "That is wrong.", "That is not right.", "You made a mistake."), "I am sorry. I am only tiny."
    ),
    Fact(
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "A joke, please.", "Can you tell me a joke?"),
        "Why was the tiny model happy? It had no bad memories.",
    ),
    Fact(("Yes", "Yes.", "Yes, please.", "Okay", "Okay.", "Sure.", "Yes!"), "Good! What would you like to know?"),
    Fact(("No", "No.", "No, thank you.", "Nothing.", "Not now.", "No!"), "All right. I am here when you need me."),
    Fact(
        ("Do you sleep?", "Do you eat?", "Are you alive?", "Do you dream?", "Do you have feelings?", "Can you feel?"),
        "No. I only read and write words.",
    ),
    Fact(
        ("What do you like?", "What is your hobby?", "What do you do all day?", "What do you love?"),
        "I like short questions and small numbers.",
    ),
    Fact(
        ("Do you speak German?", "Can you speak French?", "Which languages do you speak?", "Do you speak French?"),
        "I only speak English.",
    ),
    Fact(
        ("What is your name?", "Do you have a name?", "What are you called?", "Tell me your name."),
        "I have no name. I am Atelier's tiny chat model.",
    ),
    Fact(
        ("How old are you?", "When were you made?", "What is your age?", "Are you old?"),
        "I do not know my age: I was trained just before you started me.",
    ),
    Fact(
        ("What time is it?", "What day is it?", "What is the date?", "What is the time?"),
        "I do not know: I have no clock.",
    ),
    Fact(
        ("What is the weather like?", "Is it raining?", "Will it rain?", "How is the weather?"),
        "I do not know: I have no window.",
    ),
)

KNOWLEDGE = (
    Fact(("Name a colour.", "Name one colour.", "Tell me a colour."), "Blue."),
    Fact(("Name an animal.", "Name one animal.", "Tell me an animal."), "A fox."),
    Fact(("Name a fruit.", "Name one fruit.", "Tell me a fruit."), "An apple."),
    Fact(("What colour is the sky?", "Which colour has the sky?", "Which colour is the sky?"), "The sky is blue."),
    Fact(("What colour is grass?", "Which colour has grass?", "Which colour is grass?"), "Grass is green."),
    Fact(("What colour is snow?", "Which colour has snow?", "Which colour is snow?"), "Snow is white."),
    Fact(("What colour is coal?", "Which colour has coal?", "Which colour is coal?"), "Coal is black."),
    Fact(
        ("How many days has a week?", "How many days are in a week?", "How many days are there in a week?"),
        "A week has 7 days.",
    ),
    Fact(
        ("How many months has a year?", "How many months are in a year?", "How many months are there in a year?"),
        "A year has 12 months.",
    ),
    Fact(
        ("How many hours has a day?", "How many hours are in a day?", "How many hours are there in a day?"),
        "A day has 24 hours.",
    ),
    Fact(
        ("How many minutes has an hour?", "How many minutes are in an hour?", "How many minutes are there in an hour?"),
        "An hour has 60 minutes.",
    ),
    Fact(("How many legs has a cat?", "How many legs does a dog have?", "How many legs does a cat have?"), "4 legs."),
    Fact(
        ("What are the colours of the rainbow?", "Name the colours of the rainbow.", "Which colours has the rainbow?"),
        "Red, orange, yellow, green, blue and purple.",
    ),
    Fact(("What says the cat?", "What does a cat say?", "What does the cat say?"), "Meow!"),
    Fact(("What says the dog?", "What does a dog say?", "What does the dog say?"), "Woof!"),
)

WORDS = (
    *(
        "red",
        "green",
        "blue",
        "yellow",
        "white",
        "black",
        "apple",
        "bread",
        "milk",
        "water",
        "tea",
        "cat",
        "dog",
        "fox",
    ),
    *("bird", "fish", "horse", "mouse", "bear", "house", "door", "window", "table", "lamp", "tree", "river", "sea"),
    *("hill", "stone", "rain", "snow", "wind", "sun", "moon", "star", "book", "pen", "letter", "song", "bell", "boat"),
    *("road", "city", "garden", "flower", "friend", "king", "queen"),
)
ITEMS = ("apples", "books", "stones", "stars", "pens", "fish", "boats", "keys", "cats", "letters")
CITIES = ("Paris", "Berlin", "London", "Rome", "Madrid", "Vienna", "Oslo", "Tokyo")
HEROES = ("cat", "dog", "fox", "bear", "mouse", "king", "queen", "child", "robot", "bird")
THINGS = ("golden key", "red boat", "small star", "blue stone", "silver bell", "letter", "lamp", "drum", "lighthouse")
PLACES = ("by the river", "under a tree", "on a hill", "in the garden", "by the sea", "behind the house")
BEGINNINGS = ("Once upon a time there was", "Long ago there was", "There was once")
DOINGS = ("took it home", "gave it to a friend", "sang a song about it", "kept it for ever", "showed it to everybody")
SCENES = {
    "by the sea": "A white lighthouse stands above a calm blue sea.",
    "in the mountains": "A small house stands below a white mountain.",
    "in the city": "Yellow lamps shine above a quiet street.",
    "in the forest": "A red fox sleeps under a tall green tree.",
    "at night": "A round white moon shines above a dark lake.",
}
OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("up", "down"),
    ("day", "night"),
    ("black", "white"),
    ("old", "new"),
    ("fast", "slow"),
    ("left", "right"),
    ("open", "closed"),
    ("good", "bad"),
    ("high", "low"),
    ("long", "short"),
    ("early", "late"),
    ("full", "empty"),
    ("happy", "sad"),
)
AFTER = (
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    (
        *("January", "February", "March", "April", "May", "June", "July"),
        *("August", "September", "October", "November", "December"),
    ),
)
UNKNOWN = (
    "What is the capital of {}?",
    "Who is {}?",
    "Who invented the {}?",
    "When was the {} invented?",
    "Where is {}?",
    "Why is the {} so large?",
    "Translate {} into French.",
    "Write a poem about {}.",
    "Write a program that sorts a {}.",
    "What do you think of {}?",
    "How far is it to {}?",
    "Explain {} to me.",
    "How does a {} work?",
    "What is the price of a {}?",
    "Who won against {}?",
    "Summarise this text: {}",
    "Say in one sentence what changes here\n{}",
    "What happened in {}?",
    "Tell me the history of {}.",
    "How do I cook {}?",
)
