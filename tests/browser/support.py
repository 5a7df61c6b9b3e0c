"""What a support person does in the console and what they find there, in its own words and roles."""

from playwright.async_api import Locator, Page, expect


class Support:
    """Someone at the console."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.heading = page.get_by_role("heading", level=1)
        self.results = page.locator("ol.results > li")
        self.tally = page.locator(".tally")
        self.player = page.locator(".player")
        self.log = page.get_by_role("log", name="Conversation")
        self.answers = self.log.locator("article.answer")
        self.scrubber = page.get_by_role("slider", name="Position")
        self.play = page.get_by_role("button", name="Play", exact=True)
        self.pause = page.get_by_role("button", name="Pause", exact=True)
        self.speed = page.get_by_label("Speed")
        self.time = page.locator(".time")
        self.sheets = page.locator("details.answer-sheet")
        self.marks = page.get_by_role("group", name="Moments").get_by_role("button")

    async def sign_in(self, token: str) -> None:
        """By a token, as on the first visit of a tab."""
        await self.page.get_by_label("Access token").fill(token)
        await self.page.get_by_role("button", name="Sign in", exact=True).click()
        await expect(self.page.get_by_role("button", name="Sign out")).to_be_visible()

    async def open(self, url: str, token: str) -> None:
        """A place of the console, in a tab that is not signed in yet."""
        await self.page.goto(url)
        await self.sign_in(token)

    async def look_for(self, words: str) -> None:
        """Sessions in which that was said."""
        await self.page.get_by_label("Words said").fill(words)
        await self.page.get_by_role("button", name="Search", exact=True).click()

    def mark(self, words: str) -> Locator:
        """The mark on the timeline whose label has these words."""
        return self.page.get_by_role("group", name="Moments").get_by_role("button", name=words)

    async def seek(self, ms: int) -> None:
        """Drag the scrubber there."""
        await self.scrubber.fill(str(ms // 100 * 100))
