"""How each question is worded: at least eight phrasings for every task, the last two of which training never sees.

phrase(rng, "colour", thing="circle")                  # "What colour is the circle?"
phrase(rng, "colour", held_out=True, thing="circle")   # "The circle is of which colour?"
"""

import re

HELD_OUT = 2  # phrasings at the end of each tuple
CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")  # "[Say|Tell me] the number.": one of them is drawn
CONTRACTED = re.compile(r"\b([Ww]hat|[Ww]here|[Ww]hich|[Tt]here) is\b")
ARTICLE = re.compile(r"\b([Aa]) (?=orange|apple)")

PHRASINGS = {
    "describe": (
        "Describe the picture.", "What is in the picture?", "Describe this image.", "What do you see?",
        "What does the picture show?", "List the shapes from left to right.", "What shapes are in the picture?",
        "Say what you see.",
        "[Name|List|Describe] [all the|the] [shapes|objects|things][| in the picture| in this image| you see].",
        "[Tell me|Say] what [is in the picture|the image shows|is shown here|this image shows].",
        "What [is|do you see] [here|in this image|in the image]?", "Describe everything[| you see| that is here].",
        "Which [shapes|things|objects] [are there|do you see|are in the picture|does the image show]?",
        "What [things|shapes|objects] can you see[| here| in the image]?", "What can be [found|seen] in [the|this] picture?",
        "What [can you see|can be found|have we] here?", "What [is to be seen|can be spotted|is there to see] here?",
        "What can be seen [in it|there|in the image]?", "What [is this|is that|are these]?",
        "Caption [this image|the picture].", "Tell me about [the picture|this image].", "Name everything in the picture.",
        "What can be seen here?",
    ),
    "detail": (
        "Describe the picture in detail.", "Describe the shapes and their sizes.",
        "What is in the picture, with sizes?", "Describe everything in detail.", "List the shapes with their sizes.",
        "Tell me all about the picture.",
        "[Describe|List|Name] [all the|the] [shapes|objects|things] [and how large they are|with their sizes].",
        "[Tell me|Say] [in detail what you see|what you see, with sizes].",
        "What [shapes|objects|things] do you see[, and how large are they|, with their sizes]?",
        "Describe this image in detail.",
        "What do you see in detail?",
    ),
    "count": (
        "How many shapes are there?", "Count the shapes.", "How many objects are in the picture?", "How many shapes?",
        "How many things are there?", "What is the number of shapes?", "How many shapes can you see?",
        "Count all objects.", "Count [all|the|all the] [shapes|objects|things][| here| in this image| you see].",
        "Count everything[| you see| here].",
        "[Tell me|Say] how many [shapes|objects|things] [there are|you see|are in the picture].",
        "How many [shapes|objects|things] [are in the image|do you see|are shown|are here]?",
        "What is the [number|total] of [objects|things][| in the picture]?", "How many shapes does the picture show?",
        "Count everything in the picture.",
    ),
    "count kind": (
        "How many {kinds} are there?", "How many {kinds}?", "Count the {kinds}.", "How many {kinds} can you see?",
        "What is the number of {kinds}?", "How many {kinds} are in the picture?", "Count all {kinds}.",
        "How many of the shapes are {kinds}?",
        "How many {kinds} [do you see|are shown|are here|are in the image|are there in the picture]?",
        "[Say|Tell me] the number of {kinds}.",
        "Count [all the|the|every one of the] {kinds}[| in the picture| you see].",
        "How many {kinds} does the picture show?", "Tell me how many {kinds} there are.",
    ),
    "count colour": (
        "How many {colour} shapes are there?", "How many {colour} things?", "Count the {colour} shapes.",
        "How many shapes are {colour}?", "What is the number of {colour} shapes?", "How many things are {colour}?",
        "Count all {colour} objects.", "How many {colour} objects are in the picture?",
        "How many {colour} [things|objects] [are there|do you see|are in the image|are shown]?",
        "[Say|Tell me] the number of {colour} [shapes|things|objects].",
        "How many of the [shapes|objects|things] are {colour}?", "Count [all that are|everything that is] {colour}.",
        "How many {colour} shapes can you see?", "Tell me how many things are {colour}.",
    ),
    "colour": (
        "What colour is the {thing}?", "What color is the {thing}?", "Which colour does the {thing} have?",
        "Which color is the {thing}?", "Name the colour of the {thing}.", "What is the colour of the {thing}?",
        "The {thing} has which colour?", "Tell me the colour of the {thing}.",
        "[Say|Name|Give me] the [colour|color] of the {thing}.", "[Say|Tell me] which [colour|color] the {thing} is.",
        "What [colour|color] does the {thing} have?", "The [colour|color] of the {thing}?",
        "Of what [colour|color] is the {thing}?", "The {thing} is of which colour?", "Say what colour the {thing} has.",
    ),
    "kind": (
        "What shape is the {colour} thing?", "Which shape is {colour}?", "What is {colour}?",
        "What kind of shape is {colour}?", "Name the shape that is {colour}.", "What is the {colour} thing?",
        "The {colour} thing is what shape?", "What shape has the colour {colour}?", "[Say|Name] what is {colour}.",
        "What [object|thing|kind of thing] is {colour}?", "Name the {colour} [thing|shape|object].",
        "What is the {colour} [shape|object]?", "[Which|What] [object|thing] has the colour {colour}?",
        "[Tell me|Say] which [thing|object] is {colour}.",
        "Which kind of shape is {colour}?", "Tell me which shape is {colour}.",
    ),
    "size": (
        "Is the {thing} small or large?", "How large is the {thing}?", "What size is the {thing}?",
        "How big is the {thing}?", "What is the size of the {thing}?", "Is the {thing} large or small?",
        "Tell me the size of the {thing}.", "Which size does the {thing} have?",
        "[Say|Tell me] [if|whether] the {thing} is [small or large|large or small].",
        "[Say|Tell me] how big the {thing} is.", "Name the size of the {thing}.", "What size does the {thing} have?",
        "Say how large the {thing} is.",
    ),
    "exists": (
        "Is there a {thing}?", "Is there a {thing} in the picture?", "Do you see a {thing}?",
        "Does the picture show a {thing}?", "Can you see a {thing}?", "Is a {thing} in the picture?",
        "Does the picture have a {thing}?", "Is there any {thing}?",
        "Is there [a|any] {thing} [here|in this image|to be seen]?",
        "[Do|Can] you see [a|any] {thing} [here|in the image]?",
        "Does the [image|scene] [show|have|contain] [a|any] {thing}?", "[Say|Tell me] [if|whether] there is a {thing}.",
        "A {thing}[: is it there|, is there one|: can you see one]?", "Can [a|any] {thing} be [found|spotted]?",
        "A {thing}: yes or no?", "Can a {thing} be seen?", "Is a {thing} there?",
        "Do you see any {thing} in the picture?",
    ),
    "where": (
        "Where is the {thing}?", "Locate the {thing}.", "Give the bounding box of the {thing}.", "Find the {thing}.",
        "Show me the box of the {thing}.", "What is the bounding box of the {thing}?", "Detect the {thing}.",
        "Where can the {thing} be seen?", "[Give|Show] me the [box|place|position] of the {thing}.",
        "[Find|Locate|Detect] the {thing} [here|in the picture|in this image].",
        "What is the [box|place] of the {thing}?", "In which box is the {thing}?", "Draw a box around the {thing}.",
        "Where do you see the {thing}?", "Locate the box of the {thing}.",
    ),
    "all boxes": (
        "Where are the {kinds}?", "Locate all {kinds}.", "Give the bounding boxes of all {kinds}.", "Find all {kinds}.",
        "Show me the boxes of the {kinds}.", "Detect all {kinds}.", "What are the bounding boxes of the {kinds}?",
        "Locate the {kinds}.", "[Give|Show] me all boxes of {kinds}.", "Where are [all|all the] {kinds}?",
        "Draw boxes around [the|all] {kinds}.",
        "[Find|Locate|Detect] [every one of the|all the] {kinds}[| in the picture].", "Where do you see {kinds}?",
        "Find the boxes of all {kinds}.",
    ),
    "what at": (
        "What is at {box}?", "What is in the box {box}?", "Name the shape at {box}.", "Which shape is at {box}?",
        "What does {box} show?", "Describe the shape in {box}.", "What is inside {box}?", "Which object is at {box}?",
        "[Which shape|Which object|Which thing] is [in|inside] {box}?", "[Say|Tell me] what is [in|at|inside] {box}.",
        "Name the [thing|object] [at|in] {box}.", "What do you see [at|in|inside] {box}?", "What can be seen at {box}?",
        "Name what is in {box}.",
    ),
    "point": (
        "Point to the {thing}.", "Point at the {thing}.", "Give a point on the {thing}.",
        "Where is the centre of the {thing}?", "Show me a point on the {thing}.", "What is the centre of the {thing}?",
        "Mark the {thing} with a point.", "Find the centre of the {thing}.",
        "[Give|Show] me one point [on|in] the {thing}.", "[Give|Show me|Find|Mark] the [center|middle] of the {thing}.",
        "Where is the [center|middle] of the {thing}?", "Put a point on the {thing}.",
        "[Please point|Point] [to|at] the [middle|center] of the {thing}[| for me].",
        "Please point at the {thing} for me.", "Give the centre point of the {thing}.",
    ),
    "relation": (
        "On which side of the {other} is the {thing}?", "Where is the {thing} as seen from the {other}?",
        "Is the {thing} left, right, above, below or inside the {other}?",
        "What is the position of the {thing} relative to the {other}?", "How does the {thing} lie relative to the {other}?",
        "Seen from the {other}, where is the {thing}?", "Where is the {thing} relative to the {other}?",
        "Which side of the {other} is the {thing} on?",
        "[Say|Tell me] where the {thing} is, [seen from|relative to] the {other}.",
        "From the {other}, where is the {thing}?", "Which way is the {thing} from the {other}?",
        "Where does the {thing} lie [relative to|seen from] the {other}?",
        "In which direction from the {other} [is|lies] the {thing}?", "Looking from the {other}, where is the {thing}?",
        "Relative to the {other}, [on which side is the {thing}|how does the {thing} lie|which way is the {thing}]?",
        "[In what|In which] direction [is|lies] the {thing} from the {other}?",
        "What direction does the {thing} lie from the {other}?",
        "What side of the {other} is the {thing} on?",
        "What direction is the {thing} from the {other}?", "Relative to the {other}, where is the {thing}?",
    ),
    "related": (
        "Is the {thing} {side} the {other}?", "Is the {thing} really {side} the {other}?",
        "Do you see the {thing} {side} the {other}?", "Does the {thing} lie {side} the {other}?",
        "Can the {thing} be seen {side} the {other}?", "Is it true that the {thing} is {side} the {other}?",
        "Does the picture show the {thing} {side} the {other}?", "The {thing} is {side} the {other}, yes or no?",
        "[Say|Tell me] [if|whether] the {thing} is {side} the {other}.",
        "Is the {thing} [to be seen|drawn|placed|found] {side} the {other}?",
        "The {thing} {side} the {other}[: yes or no|, is that right|]?",
        "[Do|Can] you [find|spot] the {thing} {side} the {other}?",
        "[Do you think that|Is it right that|Is it so that|Do you think] the {thing} is {side} the {other}?",
        "Is the {thing} {side} the {other}, [yes or no|or is it not]?",
        "Would you say the {thing} is {side} the {other}?", "Yes or no: is the {thing} {side} the {other}?",
    ),
    "beside": (
        "What is {side} the {other}?", "Which shape is {side} the {other}?", "Name the shape {side} the {other}.",
        "What do you see {side} the {other}?", "What can be seen {side} the {other}?", "What lies {side} the {other}?",
        "Which object is {side} the {other}?", "Is there a shape {side} the {other}, and which?",
        "Say what [is|lies] {side} the {other}.", "[Which|What] [thing|object] [is|lies] {side} the {other}?",
        "Name the [thing|object] {side} the {other}.", "Is [something|anything] {side} the {other}, and what?",
        "What [do you find|can you see|is there] {side} the {other}?",
        "Tell me [which shape|which thing|which object] is {side} the {other}.", "Tell me what is {side} the {other}.",
        "Name what is {side} the {other}.",
    ),
    "extreme": (
        "Which shape is the {most}?", "What is the {most} shape?", "Name the {most} shape.",
        "Which is the {most} shape?", "What is the {most} thing?", "Which object is {most}?",
        "The {most} shape is which?", "Which thing is the {most}?",
        "[Say|Tell me] [what|which shape|which thing] is the {most}.", "Name the {most} [thing|object|one].",
        "[Which|What] [one|object] is the {most}?", "What is the {most} [object|one]?",
        "Which of [the objects|the things|them] is the {most}?", "Tell me [the {most} thing|what is {most}].",
        "Tell me the {most} shape.",
        "Which of the shapes is {most}?",
    ),
    "unknown": (
        "How old is the {thing}?", "Who drew the {thing}?", "What does the {thing} weigh?",
        "What is the name of the {thing}?", "How much does the {thing} cost?", "What does the {thing} think?",
        "When was the {thing} made?", "Why is the {thing} there?", "Who owns the {thing}?",
        "How [heavy|expensive|warm|loud|fast|hard|clever] is the {thing}?",
        "Who [made|painted|sold|bought|found|likes|wants|knows] the {thing}?",
        "What does the {thing} [want|say|eat|taste like|sound like|dream of|feel like]?",
        "When was the {thing} [drawn|sold|painted|found]?",
        "Why [was the {thing} drawn|does the {thing} like music|is the {thing} so quiet]?",
        "Where was the {thing} [made|sold|found|drawn]?", "Where does the {thing} [live|come from|sleep]?",
        "What is the [age|price|weight|owner|temperature] of the {thing}?", "Whose is the {thing}?",
        "How much does the {thing} [weigh|earn|eat]?", "Is the {thing} [happy|expensive|old|heavy|warm|tired|hungry]?",
        "What is the {thing} [made of|used for|thinking about]?",
        "[Say|Tell me] [who made the {thing}|how old the {thing} is|what the {thing} costs].",
        "Where did someone buy the {thing}?", "What does the {thing} [think of|hope for|listen to]?",
        "Who are you?", "Hello[| there|, how are you|, who are you].", "What is your [name|age|job]?",
        "Where do you [live|come from|sleep]?", "What [time|day] is it[| now]?", "How is the weather[| there| today]?",
        "Who [drew|made|sold|likes] this picture?", "Where was [this|the picture] [drawn|found|made]?",
        "[Tell me|Say] a [story|joke].", "What is [one|two|three] and [one|two|three]?",
        "What does the {thing} smell like?", "Where was the {thing} bought?",
    ),
    "layout": (
        "Describe where the shapes lie.", "How do the shapes lie?", "What lies where?", "How do the two shapes lie?",
        "Describe the arrangement.", "How are the shapes arranged?", "Where do the two shapes lie?",
        "[Tell me|Say] [which shape lies on which side|how the shapes lie|how the things are arranged].",
        "[Describe|Name] the [positions|places] of the [shapes|things|two shapes].",
        "[Which shape is|What is] on which side of the other?", "Describe how the two shapes lie.",
        "Describe how the shapes are arranged.", "Tell me how the two shapes lie.",
    ),
    "word": (
        "What does it say?", "Read the text.", "What is written here?", "What word is this?", "Read the word.",
        "What text is in the picture?", "Which letters are written here?", "Read what is written.",
        "What [does the sign say|is the text|is the word|can you read|does the picture say]?",
        "Read [it|this|the letters|the picture].", "Spell [the word|it|what is written].",
        "[Say|Name] [the word|the text|what it says].", "What is printed here?", "Tell me what is written.",
    ),
    "number": (
        "What number is this?", "Read the number.", "Which number is written here?", "What is the number?",
        "What number does the picture show?", "Which number do you see?", "Tell me the number.",
        "What number is printed here?", "What number [is in the picture|does it say|is shown|do you see]?",
        "[Say|Name|Give me] the number.", "Read [this number|the number in the picture].",
        "Tell me [what|which] number [this is|it is|you see].", "Which number can be read here?",
        "Say which number is written.",
    ),
    "digit": (
        "Which digit is written here?", "What digit is this?", "Read the digit.", "Which digit do you see?",
        "What is the handwritten digit?", "Which digit is this?", "Name the digit.",
        "What digit does the picture show?", "[Say|Tell me] the digit.",
        "[Which|What] digit [is shown|was written|is in the picture]?", "Read [this|the handwritten] digit.",
        "What digit is written?", "Tell me which digit this is.",
    ),
    "more": (
        "Which picture has more {kinds}?", "Where are more {kinds}?", "In which picture are there more {kinds}?",
        "Which picture shows more {kinds}?", "Which image has more {kinds}?", "Which of the pictures has more {kinds}?",
        "Where do you see more {kinds}?", "More {kinds}: in which picture?",
        "[Which|What] [picture|image] [shows|contains] more {kinds}?", "[Say|Tell me] which picture has more {kinds}.",
        "In which [picture|image] [can you see|do you find] more {kinds}?",
        "[Tell me|Say] in which [one|image|picture] you see more {kinds}.", "Which one has more {kinds}?",
        "In which image do you see more {kinds}?",
    ),
    "changed": (
        "What has changed?", "What changed?", "What is different?", "What is the difference?",
        "Which change do you see?", "What is different in the second picture?", "Name the change.",
        "What has changed between the pictures?", "[Say|Name] what [changed|is different|is new or gone].",
        "What [is different now|changed from the first to the second|is new or gone]?",
        "How [do they differ|does the second picture differ|did it change]?", "[Find|Tell me] the [difference|change].",
        "What is not [as it was|as before]?", "Which [shape|thing] [is not as it was|is not the one it was]?",
        "Did anything change, and what?", "Tell me what has changed.", "What is not the same?",
    ),
    "describe both": (
        "Describe both pictures.", "Describe the pictures.", "What is in each picture?", "What do the two pictures show?",
        "Describe both images.", "What do you see in the pictures?", "Describe each picture.",
        "What is in the first picture, and what is in the second?",
        "[Describe|List|Name] [all|the] [shapes|objects|things] [in both|in each|in the two] [pictures|images].",
        "[Tell me|Say] what [both|the two|the] [pictures|images] show.", "What [do both|do the|does each of the] images show?",
        "What is in [both images|the images|the first and the second image]?", "[Describe|Caption] [both|each|the two images].",
        "What [shapes|objects|things] are [in each image|in both pictures|in the two pictures]?",
        "Describe [each image|the two|both of them|them both].", "What is [in them|in both|in each]?",
        "Tell me about [both|the two|these] [pictures|images].", "Describe the two images.",
        "What do you see in each of the images?", "Say what is in both pictures.",
    ),
    "describe of two": (
        "Describe the {nth} picture.", "What is in the {nth} picture?", "What does the {nth} picture show?",
        "Describe the {nth} image.", "What do you see in the {nth} picture?", "In the {nth} picture, what do you see?",
        "What shapes are in the {nth} picture?", "Say what is in the {nth} picture.", "What is in the {nth} image?",
        "[Describe|List|Name] [all|the] [shapes|objects|things] in the {nth} [picture|image].",
        "[Tell me|Say] what the {nth} [picture|image] shows.", "What [does the {nth} image show|does the {nth} one show]?",
        "Describe the {nth} one.", "In the {nth} [picture|image], what [is there|shapes are there|can be seen]?",
        "What [shapes|things|objects] [do you see|are there|are] in the {nth} image?",
        "Tell me about the {nth} [picture|image].",
        "What can be seen in the {nth} picture?", "What is in the {nth} one?",
    ),
    "count of two": (
        "How many shapes are in the {nth} picture?", "Count the shapes in the {nth} picture.",
        "How many things are in the {nth} picture?", "In the {nth} picture, how many shapes are there?",
        "How many shapes does the {nth} picture show?", "How many objects are in the {nth} image?",
        "What is the number of shapes in the {nth} picture?", "How many shapes do you see in the {nth} picture?",
        "[Count|Tell me the number of] [all|the] [shapes|objects|things] in the {nth} [picture|image].",
        "How many [shapes|objects|things] [are there|can you see|are shown|are] in the {nth} [picture|image]?",
        "In the {nth} image, how many [shapes|objects|things] [are there|do you see|can be seen]?",
        "[Say|Tell me] how many [shapes|objects|things] the {nth} [picture|image] [has|shows].",
        "How many things can be seen in the {nth} picture?", "How many shapes does the {nth} one have?",
    ),
    "exists of two": (
        "Is there a {thing} in the {nth} picture?", "In the {nth} picture, is there a {thing}?",
        "Does the {nth} picture have a {thing}?", "Does the {nth} picture show a {thing}?",
        "Do you see a {thing} in the {nth} picture?", "Is a {thing} in the {nth} picture?",
        "Is there a {thing} in the {nth} image?", "Can you see a {thing} in the {nth} picture?",
        "[Would you say that|Is it true that] the {nth} [picture|image] [contains|has|shows] a {thing}?",
        "In the {nth} image, [is there|do you see|can you find] a {thing}?",
        "[Say|Tell me] whether the {nth} [picture|image] [has|shows|contains] a {thing}.",
        "Is a {thing} [shown|to be seen|visible] in the {nth} [picture|image]?",
        "Can a {thing} be seen in the {nth} picture?", "Does the {nth} one have a {thing}?",
    ),
    "which picture": (
        "Which picture has a {thing}?", "Where is there a {thing}?", "In which picture is a {thing}?",
        "Which picture shows a {thing}?", "Which image has a {thing}?", "In which picture do you see a {thing}?",
        "A {thing} is in which picture?", "Which of the pictures has a {thing}?",
        "[Which|What] [picture|image] [shows|contains] [a|the] {thing}?",
        "In which [picture|image] [is|can you see] [a|the] {thing}?", "[Say|Tell me] which picture has a {thing}.",
        "Which one has a {thing}?", "In which image can a {thing} be seen?",
    ),
    "of two": (
        "What colour is the {thing} in the {nth} picture?", "In the {nth} picture, what colour is the {thing}?",
        "What color is the {thing} in the {nth} picture?", "Which colour does the {thing} in the {nth} picture have?",
        "Name the colour of the {thing} in the {nth} picture.", "What is the colour of the {thing} in the {nth} image?",
        "The {thing} in the {nth} picture has which colour?", "What colour does the {thing} have in the {nth} picture?",
        "[Say|Name] the [colour|color] of the {thing} in the {nth} [picture|image].",
        "In the {nth} [picture|image], what [colour|color] [is the {thing}|does the {thing} have]?",
        "In the {nth} one, [which|what] [colour|color] [is the {thing}|does the {thing} have]?",
        "Tell me the colour of the {thing} in the {nth} picture.", "In the {nth} image, which colour is the {thing}?",
    ),
    "way": (
        "Which way does the {thing} move?", "In which direction does the {thing} move?", "Where does the {thing} go?",
        "How does the {thing} move?", "Which way does the {thing} go?", "What is the direction of the {thing}?",
        "The {thing} moves which way?", "Where is the {thing} going?",
        "[In which|In what] direction [does the {thing} go|is the {thing} going|does the {thing} travel]?",
        "[Say|Name] the direction of the {thing}.", "Which way [did the {thing} go|does the {thing} travel]?",
        "Say [where|which way] the {thing} [goes|moves].", "In which direction is the {thing} moving?",
        "Tell me where the {thing} [goes|moves|travels].", "Which way is the {thing} moving?",
        "Tell me which way the {thing} goes.",
    ),
    "first": (
        "What came first?", "Which shape came first?", "What appeared first?", "Which shape was there first?",
        "What was the first shape?", "Which shape appeared first?", "What do you see first?", "Name the first shape.",
        "Say what [came|appeared|was] first.", "[Which|What] [object|thing|one] [came|appeared|was seen] first?",
        "What is the first [shape|object|thing]?", "With what does [it|the video] begin?",
        "[What|Which shape] was there [at the start|before the others|from the start]?", "What was there first?",
        "Tell me which shape came first.",
    ),
    "when": (
        "When did it change?", "When does the colour change?", "In which frame does the colour change?",
        "When did the colour change?", "When is the change?", "At which frame does it change?",
        "Which frame has the new colour first?", "When does it change?",
        "Say when [it changes|it changed|the colour changed].",
        "[At|From] which frame [does|did] the [colour|color] change?",
        "Which frame [is the first with the new colour|shows the change]?",
        "When [do you see the change|does the new colour come]?", "At what frame [does it change|is the change]?",
        "Tell me when the colour changes.", "In which frame did it change?",
    ),
    "appeared": (
        "How many shapes appeared?", "How many shapes are new?", "How many new shapes came?",
        "How many shapes came later?", "How many appeared?", "How many shapes were added?",
        "What is the number of new shapes?", "Count the new shapes.",
        "How many [objects|things] [came|were added|are new|appeared later|came later]?",
        "[Say|Tell me] the number of new [shapes|objects|things].",
        "Count the [shapes that came|shapes that appeared|new objects|new things].",
        "How many [shapes|objects] were not there [at first|at the start]?",
        "[Tell me|Say] how many [new ones|new shapes] there are.", "How many new shapes are there?",
        "Tell me how many shapes appeared.",
    ),
    "bar": (
        "How high is the {colour} bar?", "What is the value of the {colour} bar?", "What does the {colour} bar show?",
        "Read the {colour} bar.", "How many units high is the {colour} bar?", "What number does the {colour} bar reach?",
        "How tall is the {colour} bar?", "What is the height of the {colour} bar?",
        "[Say|Read|Give me|Name] the [value|height] of the {colour} bar.", "How many units is the {colour} bar?",
        "[What|Which] value does the {colour} bar show?", "Which value does the {colour} bar have?",
        "Tell me the value of the {colour} bar.",
    ),
    "best bar": (
        "Which bar is the {most}?", "What colour is the {most} bar?", "Name the {most} bar.",
        "Which bar is {most}?", "Which is the {most} bar?", "What is the colour of the {most} bar?",
        "The {most} bar has which colour?", "Which of the bars is {most}?",
        "[Say|Name] the [colour|color] of the {most} bar.", "[Which|What] one is the {most}?",
        "What [colour|color] does the {most} bar have?", "[Say|Tell me] which bar is the {most}.",
        "Tell me the {most} bar.", "Which colour is the {most} bar?",
    ),
    "table": (
        "What is in row {row}, column {column}?", "What is the number in row {row}, column {column}?",
        "Read row {row}, column {column}.", "What does row {row}, column {column} say?",
        "In row {row}, what is in column {column}?", "What is the value in row {row}, column {column}?",
        "Which number is in row {row}, column {column}?", "What is in column {column} of row {row}?",
        "[Say|Read|Give me] the [number|value] in row {row}, column {column}.", "Row {row}, column {column}?",
        "What [number|value] [is|stands|do you see] in row {row}, column {column}?",
        "[What|Which number] is in column {column}, row {row}?", "Tell me the number in row {row}, column {column}.",
        "What does the table have in row {row}, column {column}?",
    ),
    "corner": (
        "Which shape has the colour of the corner mark?", "What has the same colour as the corner mark?",
        "Which shape is like the corner mark?", "Which shape matches the corner mark?",
        "What matches the mark in the corner?", "Which shape has the same colour as the mark?",
        "What shape has the colour of the mark?", "Which shape has the colour of the mark in the corner?",
        "Say [what|which shape] has the colour of the [corner mark|mark].",
        "[Which|What] [object|thing] [matches|is like|goes with] the [mark|corner mark]?",
        "Find the shape [with the colour of|that is like|of the same colour as] the [mark|corner mark].",
        "Name the [thing|object] that [is like|goes with|has the colour of] the [mark|corner mark].",
        "[What|Which object|Which thing] shares [the colour of the mark|the corner mark's colour|the mark's colour]?",
        "Which [object|shape] has the same colour as the [mark|corner mark]?",
        "Name the shape that matches the corner mark.", "Which shape shares its colour with the corner mark?",
    ),
    "longer": (
        "Which bar is longer?", "Which of the two bars is longer?", "Which bar is the longer one?",
        "Is the {a} or the {b} bar longer?", "What bar is longer, the {a} or the {b}?",
        "Which is longer, the {a} bar or the {b} bar?", "Name the longer bar.", "Which one of the bars is longer?",
        "Say which [one|bar] is [longer|the longer one].", "[Which|What] [one|bar] is the longest?",
        "Find the longer [one|bar].", "Tell me which bar is longer.", "Which of the bars is the longer one?",
    ),
    "line": (
        "Where does the line from the {colour} dot end?", "Which dot does the line from the {colour} dot reach?",
        "Follow the line from the {colour} dot.", "The line from the {colour} dot ends where?",
        "What is at the end of the line from the {colour} dot?", "Where does the {colour} dot lead?",
        "Which dot is joined to the {colour} dot?", "To which dot does the {colour} dot lead?",
        "[Say|Tell me] where the line from the {colour} dot [ends|goes|leads].",
        "Where does the line [from|of|that begins at] the {colour} dot [go|lead]?",
        "What does the {colour} dot [join|reach|lead to]?",
        "Which [dot|colour] is [joined with|connected to|linked to] the {colour} dot?",
        "Which dot does the {colour} dot lead to?", "Where does the line that starts at the {colour} dot end?",
    ),
    "ambiguous": (),  # worded as "colour"
    "hidden": (
        "What is behind the grey panel?", "Which shape is half hidden?", "What shape is hidden?",
        "What is the hidden shape?", "Which shape is behind the panel?", "What shape is behind the grey panel?",
        "Name the hidden shape.", "Which shape does the panel hide?",
        "[Say|Name] [what is hidden|the shape behind the panel|what the panel covers].",
        "What [is|lies] [behind|under] the panel?", "Which shape [does the panel cover|is covered|is under the panel]?",
        "Tell me what is behind the panel.", "What does the grey panel hide?",
    ),
    "noisy": (
        "What shape is in the noise?", "Which shape do you see in the noise?", "What is in the noise?",
        "Name the shape in the noise.", "Which shape is in the noise?", "What shape is this?",
        "What shape can you see in the noise?", "Which shape is this?",
        "[Say|Name] [the shape in this noise|what is in the noise|what the noise hides].",
        "What [shape do you see here|is behind the noise|shape is behind the noise]?",
        "Which [object|thing] is in the noise?", "Tell me the shape in the noise.", "What can be seen in the noise?",
    ),
    "another": (
        "And the {thing}?", "And what about the {thing}?", "What about the {thing}?", "And for the {thing}?",
        "The same for the {thing}?", "How about the {thing}?", "And now the {thing}?", "Then the {thing}?",
        "[And|Then|Now] what about the {thing}?", "[And|Also] for the {thing}?", "And how about the {thing}?",
        "Now for the {thing}?",
    ),
    "more kinds": (
        "And {kinds}?", "And how many {kinds}?", "What about {kinds}?", "And what about {kinds}?", "How about {kinds}?",
        "And the {kinds}?", "What about the {kinds}?", "Then {kinds}?", "[And|Now|Then] how many {kinds}?",
        "Also [the |]{kinds}?", "And how about {kinds}?", "Now {kinds}?",
    ),
    "one": (
        "Name one of the shapes.", "Name one shape.", "Tell me one of the shapes.", "What is one of the shapes?",
        "Pick one shape.", "Choose one of the shapes.", "Name any shape.", "Which shape is one of them?",
        "Name [one of them|a shape].", "[Say|Give me] one shape.", "Give me one of the shapes.",
        "Pick one of the shapes.",
    ),
    "other one": (
        "And the other one?", "And the other?", "What is the other one?", "And the other shape?",
        "What about the other one?", "Name the other one.", "And what is the other one?", "Which is the other one?",
        "[And|Then] [which|what] is the other?", "Say the other one.", "Which shape is the other one?",
        "[And|Now] the second one?", "[What about|And|And now] the other [thing|object]?",
        "How about the other one?", "Tell me the other one.",
    ),
}  # fmt: skip
PHRASINGS["ambiguous"] = PHRASINGS["colour"]


def phrase(rng, task, held_out=False, **fields):
    """One wording of a task's question; of the first one, which is the usual one, three times as many."""
    wordings = PHRASINGS[task]
    known = len(wordings) - HELD_OUT
    if held_out:
        chosen = wordings[known + int(rng.integers(HELD_OUT))]
    else:
        chosen = wordings[max(0, int(rng.integers(-2, known)))]
    text = CHOICE.sub(lambda match: pick(rng, match[1].split("|")), chosen).format(**fields)
    return ARTICLE.sub(r"\1n ", text)


def pick(rng, items):
    return items[int(rng.integers(len(items)))]


def vary(rng, question):
    """The question with "please", in another letter case, without its mark or with "'s" for "is", now and then."""
    draw = rng.random()
    if draw < 0.06 and not question.lower().startswith("please"):
        question = f"Please {question[0].lower()}{question[1:]}" if question[-1] == "." else question
        question = f"{question[:-1]}, please?" if question[-1] == "?" else question
    elif draw < 0.16:
        question = question.lower()
    elif draw < 0.18:
        question = question.upper()
    elif draw < 0.22:
        question = question.rstrip(".?")
    elif draw < 0.27:
        question = CONTRACTED.sub(r"\1's", question)
    return question


def join_words(words):
    """ "a", "a and b", "a, b and c" """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def with_article(text):
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def plural(kind):
    """ "crosses", "stars" """
    return "crosses" if kind == "cross" else f"{kind}s"
