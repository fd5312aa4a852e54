"""What the official client reads of a chat."""

QUESTION = [{"role": "user", "content": "8,2,4:10"}]
THINKING, ANSWER = "8+4=12,12-2=10", "<answer>8+4-2</answer>"


def test_models_are_listed_and_retrieved(shared):
    listed = shared.openai.models.list()
    assert listed.object == "list"
    assert [(model.id, model.object, model.owned_by) for model in listed] == [("tiny/model", "model", "fathom")]


def test_a_plain_chat_and_its_usage(shared):
    reply = shared.openai.chat.completions.create(model="tiny/model", messages=QUESTION, temperature=0)
    message = reply.choices[0].message
    assert (message.role, message.content, reply.choices[0].finish_reason) == ("assistant", ANSWER, "stop")
    assert message.model_extra == {"reasoning_content": THINKING, "reasoning": THINKING}
