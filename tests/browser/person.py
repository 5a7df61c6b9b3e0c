"""What a person does on the conversation page and what they find there, in the page's own words and roles."""

from playwright.async_api import Locator, Page, expect


class Person:
    """Someone at the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.box = page.get_by_role("textbox", name="Your message")
        self.stop = page.get_by_role("button", name="Stop")
        self.log = page.get_by_role("log", name="Conversation")
        self.answers = self.log.locator("article.answer")
        self.connection = page.locator("#connection")
        self.notice = page.locator("#notice")

    async def wait_until_connected(self) -> None:
        await expect(self.connection).to_have_text("Connected")

    async def say(self, text: str) -> Locator:
        """Type and send `text`; the answer that follows."""
        num_answers = await self.answers.count()
        await self.box.fill(text)
        await self.box.press("Enter")
        return self.answers.nth(num_answers)

    async def words(self, answer: Locator) -> str:
        return await answer.locator(".words").text_content() or ""

    async def wait_until_speaking(self, answer: Locator) -> None:
        await expect(answer).to_have_attribute("data-status", "streaming")

    async def wait_until(self, answer: Locator, status: str) -> None:
        await expect(answer).to_have_attribute("data-status", status)
